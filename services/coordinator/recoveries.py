"""Jobs whose trainer was lost get another by themselves, as far as their specifications allow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lowdimfa.errors import LowdimfaError, PeerError, ResourceError
from lowdimfa.services.coordinator.attempt import LAST_EVENTS, RunRequests
from lowdimfa.services.coordinator.jobs import Event, Job, JobState
from lowdimfa.services.coordinator.runner import Condition, Look
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.load import parse_text
from lowdimfa.services.trainer.budget import TRAINER_LOST, RecoveryBudget, recoveries_in
from lowdimfa.services.trainer.run_dir import opened
from lowdimfa.services.trainer.stopping import stopped

GAVE_UP = "the trainer gave up"
"""Begins the reason of a recovery from what a trainer itself reported before it ended."""

_TORN = frozenset({LowdimfaError.code, ResourceError.code})
"""What a trainer may report whose cluster goes away under it; only if its process went as well."""


class Recoveries:
    """Decides which jobs go on after the loss of their trainer.

    How many recoveries a job had is counted in its run's log, so that a coordinator that comes back counts right.

    Parameters
    ----------
    store
        Where jobs are kept.
    requests
        Knows where their logs are.
    """

    def __init__(self, store: JobStore, requests: RunRequests) -> None:
        self._store, self._requests = store, requests
        self._rests: dict[str, float] = {}

    def verdict(self, job: Job, look: Look, outcome: Event) -> Event | None:
        """Say how a job ends whose trainer has ended; None if it goes on, which its log then says.

        Parameters
        ----------
        job
            What the store knows, its log taken in.
        look
            What was found of the trainer.
        outcome
            The last word of the trainer, or what stands for it.
        """
        if (
            _recovering(self._store, job, JobState.starting, "started") is not None
        ):  # begun in an earlier round
            return {"event": "failed"} | stopped(Path(job.run_dir)).as_event() if job.stop_requested else None
        if job.stop_requested or not _may_pass(job, look, outcome):
            return outcome
        specification = parse_text(self._store.submission(job.id).specification, "the specification")
        if specification.run.on_failure == "fail":
            return outcome
        reason = (
            TRAINER_LOST if look.condition is Condition.lost else f"{GAVE_UP}: {outcome.get('message', '')}"
        )
        return self._begin(job, specification, reason)

    def _begin(self, job: Job, specification: Specification, reason: str) -> Event | None:
        journal = Journal(Path(job.run_dir))
        budget = RecoveryBudget.of(specification, time.time, recoveries_in(journal))
        pause = budget.spend()
        if pause is None:
            error = PeerError(
                f"{budget.used_up(reason)}; 'lowdimfa resume {job.id}' goes on from its last checkpoint, if it has one",
                setting="run.max_recoveries",
            )
            return _note(journal, "failed", **error.as_event())
        _note(
            journal,
            "recovering",
            policy="restart",
            blocks=[],
            reason=reason,
            step=job.step,
            recovery=budget.total,
        )
        self._rests[job.id] = time.monotonic() + pause
        return None

    def resting(self, job: Job) -> bool:
        """Whether a job that goes on waits for the pause before its next attempt to pass."""
        if time.monotonic() < self._rests.get(job.id, 0.0):
            return True
        self._rests.pop(job.id, None)
        return False

    def detail(self, job: Job) -> str:
        """Say why a job that goes on is in the queue."""
        event = _recovering(self._store, job, JobState.starting, "started")
        reason = TRAINER_LOST if event is None else event["reason"]
        steps = CheckpointStore(Path(job.run_dir)).list()
        return f"{reason}; goes on from step {steps[-1]:,}" if steps else f"{reason}; begins anew"

    def lost_at(self, job: Job) -> float | None:
        """Return when the loss was noticed that a job's attempt makes up for, in Unix seconds; None without one."""
        event = _recovering(self._store, job, "started")
        return None if event is None else float(event["time"])


def _note(journal: Journal, event: str, **fields: Any) -> Event:
    """Add an event to the journal of a run that nobody works on."""
    with opened(journal):
        return journal.emit(event, **fields)


def _may_pass(job: Job, look: Look, outcome: Event) -> bool:
    """Whether a job ended by a loss after which another trainer may do better."""
    code, setting = outcome.get("code"), outcome.get("setting")
    if outcome["event"] != "failed" or setting == "run.max_recoveries":
        return False
    if (
        setting == "placement"
    ):  # a block that was lost found no room; a job that never had room waits for it anyway
        return job.state is not JobState.starting
    return code == PeerError.code or (look.condition is Condition.lost and code in _TORN)


def _recovering(store: JobStore, job: Job, *until: str) -> Event | None:
    """Return the start of the last recovery of a lost trainer, unless one of some states or events came after it."""
    recent = store.events(job.id, max(0, job.last_sequence - LAST_EVENTS), LAST_EVENTS)
    for _, event in reversed(recent):
        if event["event"] == "recovering" and str(event.get("reason")).startswith((TRAINER_LOST, GAVE_UP)):
            return event
        if (event["state"] if event["event"] == "state" else event["event"]) in until:
            return None
    return None
