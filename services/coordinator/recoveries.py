"""Jobs whose trainer was lost get another by themselves, as far as their specifications allow."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from lowdimfa.errors import RecoveriesUsedUpError, ResourceError, StorageError, error_of
from lowdimfa.services.coordinator.attempt import LAST_EVENTS
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import Event, Job, JobState
from lowdimfa.services.coordinator.runner import Condition, Look
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.monitoring.journal import Journal, Position
from lowdimfa.services.recovery.policy import (
    TRAINER_LOST,
    End,
    Rules,
    TrainerGaveUp,
    decide,
    history_in,
    noted_at,
)
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec.load import parse_text
from lowdimfa.services.trainer.run_dir import opened
from lowdimfa.services.trainer.stopping import stopped


class Recoveries:
    """Decides which jobs go on after the loss of their trainer.

    How many recoveries a job had is counted in its run's log, so that a coordinator that comes back counts right.

    Parameters
    ----------
    store
        Where jobs are kept.
    copies
        Knows where their logs are.
    """

    def __init__(self, store: JobStore, copies: Copies) -> None:
        self._store, self._copies = store, copies
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
            return {"event": "failed"} | stopped(job.run_dir).as_event() if job.stop_requested else None
        if job.stop_requested or outcome["event"] != "failed":
            return outcome
        failure = TrainerGaveUp(
            error_of(outcome), look.condition is Condition.lost, job.state is not JobState.starting
        )
        rules = Rules.of(parse_text(self._store.submission(job.id).specification, "the specification"))
        journal = Journal(self._copies.folder(job), follow=False)
        events = journal.read("failed", "finished", "recovering", "started")
        decision = decide(failure, rules, history_in(events), time.time(), random.random())
        if isinstance(decision, End):
            if decision.why != "used up":
                return outcome
            error = RecoveriesUsedUpError(
                f"{decision.words}; 'lowdimfa resume {job.id}' goes on from its last checkpoint, if it has one",
                setting="run.max_recoveries",
            )
            return self._note(job, "failed", **error.as_event())
        self._note(
            job,
            "recovering",
            lost="trainer",
            policy=decision.policy,
            blocks=[],
            reason=failure.reason,
            step=job.step,
            recovery=decision.recovery,
        )
        self._rests[job.id] = time.monotonic() + decision.pause
        return None

    def _note(self, job: Job, event: str, **fields: Any) -> Event:
        """Add an event to the journal of a run that nobody works on, as its last: all else in it was taken in.

        Raises
        ------
        ResourceError
            It isn't possible now, and the journal is as it was.
        """
        journal = Journal(self._copies.folder(job), follow=False)
        # The copy replaces the store's journal: what the store has beyond it would be lost.
        self._copies.refresh(job, now=True)
        if journal.after(Position(job.log_position)).events:
            raise StorageError(f"events of job {job.id} came late; they are read first")
        before = journal.end().byte
        with opened(journal):
            entry = journal.emit(event, **fields)
        try:  # what the run's log has not must not be taken in: it is noted again, once that is possible
            if entry not in journal.read(event):
                raise ResourceError(f"an event can't be added to the run: {journal.trouble}")
            self._copies.send_events(job)
        except ResourceError:
            os.truncate(journal.path, before)
            raise
        return entry

    def resting(self, job: Job) -> bool:
        """Whether a job that goes on waits for the pause before its next attempt to pass."""
        if time.monotonic() < self._rests.get(job.id, 0.0):
            return True
        self._rests.pop(job.id, None)
        return False

    def detail(self, job: Job) -> str:
        """Say why a job that goes on is in the queue."""
        event = _recovering(self._store, job, JobState.starting, "started")
        reason = TRAINER_LOST if event is None else event.get("reason", TRAINER_LOST)
        steps = CheckpointStore(job.run_dir).list()
        return f"{reason}; goes on from step {steps[-1]:,}" if steps else f"{reason}; begins anew"

    def lost_at(self, job: Job) -> float | None:
        """Return when the loss was noticed that a job's attempt makes up for, in Unix seconds; None without one."""
        event = _recovering(self._store, job, "started")
        return None if event is None else noted_at(event)


def _recovering(store: JobStore, job: Job, *until: str) -> Event | None:
    """Return the start of the last recovery of a lost trainer, unless one of some states or events came after it."""
    recent = store.events(job.id, max(0, job.last_sequence - LAST_EVENTS), LAST_EVENTS)
    for _, event in reversed(recent):
        if event["event"] == "recovering" and event.get("lost") == "trainer":
            return event
        if (event["state"] if event["event"] == "state" else event["event"]) in until:
            return None
    return None
