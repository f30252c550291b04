"""How long a trainer may stay silent, and how long it may take to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from lowdimfa.services.coordinator.attempt import trainer_of
from lowdimfa.services.coordinator.jobs import Job, JobState
from lowdimfa.services.coordinator.runner import Condition, JobRunner, Look
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.recovery.deadlines import longest_silence
from lowdimfa.services.spec.load import parse_text

GRACE_LIVENESS = 3.0
"""A graceful stop gets this many times the liveness."""


class Patience:
    """Ends trainers that don't answer, or that don't stop when they are asked to.

    The deadlines derive from the liveness of the job's own specification: it says how long a step may take.

    Parameters
    ----------
    store, runner
        Where jobs are kept, and where they run.
    warn
        Tells those who watch a job.
    """

    def __init__(self, store: JobStore, runner: JobRunner, warn: Callable[[Job, str], None]) -> None:
        self._store, self._runner, self._warn = store, runner, warn
        self._stopping: dict[str, float] = {}
        self._silent: dict[str, float] = {}

    def watch(self, job: Job, look: Look) -> None:
        """End a trainer that has been silent for too long."""
        if look.condition is not Condition.silent:
            self._silent.pop(job.id, None)
            return
        since = self._silent.setdefault(job.id, time.monotonic())
        patience = longest_silence(self._liveness(job), job.state is JobState.running)
        if time.monotonic() - since > patience:
            self._warn(job, f"the trainer has not answered for {patience:g} s; it is ended")
            self._runner.stop(trainer_of(job), now=True)
            del self._silent[job.id]

    def stop(self, job: Job) -> None:
        """Pass on a request to stop, once; one that takes too long becomes one to stop at once."""
        trainer = trainer_of(job)
        if job.stop_requested == "now":
            self._runner.stop(trainer, now=True)
            return
        since, grace = self._stopping.get(job.id), GRACE_LIVENESS * self._liveness(job)
        if since is None:
            self._runner.stop(trainer, now=False)
            self._stopping[job.id] = time.monotonic()
        elif time.monotonic() - since > grace:
            self._warn(job, f"no checkpoint within {grace:g} s; the job is stopped at once")
            self._store.update(job.id, stop_requested="now")

    def _liveness(self, job: Job) -> float:
        specification = parse_text(self._store.submission(job.id).specification, "the specification")
        return specification.run.liveness_seconds

    def forget(self, job: Job) -> None:
        """Forget a job whose trainer has ended."""
        self._stopping.pop(job.id, None)
        self._silent.pop(job.id, None)
