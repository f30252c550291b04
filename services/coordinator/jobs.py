"""What a job is: its states, what it may become, and what was submitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Event = dict[str, Any]
"""A run's event, as in its ``events.jsonl``, or the coordinator's own ``state`` event."""


class JobState(StrEnum):
    """Where a job is on its way; ``proto/`` says what each state means."""

    queued = "queued"
    starting = "starting"
    running = "running"
    stopping = "stopping"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.queued: frozenset({JobState.starting, JobState.stopped}),
    # Back to the queue: the room was gone when the blocks were placed.
    JobState.starting: frozenset(
        {JobState.queued, JobState.running, JobState.stopping, JobState.failed, JobState.stopped}
    ),
    # Back to the queue: its trainer was lost, and it goes on by itself.
    JobState.running: frozenset(
        {JobState.queued, JobState.stopping, JobState.finished, JobState.failed, JobState.stopped}
    ),
    # It may reach its end, one way or the other, before the request to stop does.
    JobState.stopping: frozenset({JobState.stopped, JobState.finished, JobState.failed}),
    JobState.finished: frozenset(),
    JobState.failed: frozenset({JobState.queued}),
    JobState.stopped: frozenset({JobState.queued}),
}
"""The states that each state may change to; nothing else ever happens to a job."""

ENDS = frozenset({JobState.finished, JobState.failed, JobState.stopped})
"""The states in which nothing of a job runs."""

ACTIVE = frozenset({JobState.starting, JobState.running, JobState.stopping})
"""The states in which a job has, or is given, a place in the cluster."""

STOPPED_WAITING = "stopped while it waited for room"
"""What a job says that somebody stopped in the queue; an earlier attempt of it may well have trained."""


@dataclass(frozen=True)
class Submission:
    """What a client sent.

    Attributes
    ----------
    name
        What to call the job; its identifier begins with it.
    owner
        Name of the client's token; empty without tokens.
    specification
        YAML text, validated.
    files
        The user's own Python files: text by relative path.
    client_key
        Makes the submission idempotent for this owner; empty for none.
    """

    name: str
    owner: str
    specification: str
    files: dict[str, str] = field(default_factory=dict)
    client_key: str = ""


@dataclass(frozen=True)
class Job:
    """What the store knows of a job. Times are Unix seconds.

    Attributes
    ----------
    id
        Also the name of its run directory and its ``job`` label in Prometheus.
    name, owner
        As submitted.
    state, detail
        Where it is, and in words what it waits for, how far it is, or how it ended.
    error
        Fields of the ``failed`` event; None unless it failed.
    created, started, ended
        None where it has not come to that; ``started`` is that of the current attempt.
    queued
        When it was last put into the queue, for what counts waiting.
    attempt
        How often it was taken out of the queue.
    step, steps
        Optimiser steps done and planned; 0 before they are known.
    loss, test_accuracy
        The latest that was reported; None where there is none.
    last_sequence
        Of its newest event.
    run_dir
        On the shared storage.
    cpus, gpus
        What all its blocks together ask of the cluster.
    stop_requested
        ``graceful`` or ``now`` once somebody asked for it, else empty.
    log_position
        Bytes of the run's ``events.jsonl`` that are in the store.
    """

    id: str
    name: str
    owner: str
    state: JobState
    detail: str
    created: float
    run_dir: str
    cpus: float
    gpus: float
    queued: float = 0.0
    error: Event | None = None
    started: float | None = None
    ended: float | None = None
    attempt: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    test_accuracy: float | None = None
    last_sequence: int = 0
    stop_requested: str = ""
    log_position: int = 0
