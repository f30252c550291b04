"""What runs log comes into the store, and what hinders that is told to those who watch."""

from __future__ import annotations

import time
from collections.abc import Callable

from lowdimfa.errors import StorageError
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import Event, Job, JobState
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.monitoring.journal import Journal, Position

UNSEEN = "what happens can't be seen now"
"""What watchers of a job are told when its events can't be fetched, once until they can."""


class Intake:
    """Brings the store up to what runs have logged.

    Parameters
    ----------
    store, copies
        Where jobs are kept, and where their logs can be read.
    liveness
        For which the last events of a run that has ended are waited for, in seconds.
    on_change
        Called with a job's id after its events grew.
    on_more
        Called when a log has more than was taken in at once.
    """

    def __init__(
        self,
        store: JobStore,
        copies: Copies,
        liveness: float,
        on_change: Callable[[str], None],
        on_more: Callable[[], None],
    ) -> None:
        self._store, self._copies, self._liveness = store, copies, liveness
        self._on_change, self._on_more = on_change, on_more
        self._warned: dict[str, set[str]] = {}
        self._unread: dict[str, float] = {}

    def take_in(self, job: Job) -> Job:
        """Bring the store up to a run's log, in parts, and return the job as it is then."""
        try:
            self._copies.refresh(job)
        except StorageError as error:
            self.warn(job, f"{UNSEEN}: {error.message}")
            job = self._store.get(job.id)
        else:
            self._warned.get(job.id, set()).discard(UNSEEN)
        # No further than the start, which changes the job's state: watchers see all that in its order.
        through = "started" if job.state is JobState.starting else ""
        before = Position(job.log_position)
        events, position, more = Journal(self._copies.folder(job), follow=False).after(
            before, through=through
        )
        if position is None or position == before:
            return job
        job = self._store.append(job.id, events, position.byte)
        self._on_change(job.id)
        if more:
            self._on_more()
        return job

    def is_complete(self, job: Job) -> bool:
        """Whether all that a trainer that has ended wrote can be read, or was waited for long enough."""
        try:
            self._copies.refresh(job, now=True)
        except StorageError as error:
            self.warn(job, f"the job has ended; its last events are missing: {error.message}")
            began = self._unread.setdefault(job.id, time.monotonic())
            return time.monotonic() - began > self._liveness
        self._unread.pop(job.id, None)
        return True

    def warn(self, job: Job, message: str) -> None:
        """Tell those who watch a job, once in an attempt, whatever follows the message's first colon."""
        told, what = self._warned.setdefault(job.id, set()), message.partition(":")[0]
        if what in told:
            return  # however many rounds it lasts; a client's reason is never twice the same
        told.add(what)
        warning: Event = {"event": "warning", "time": time.time(), "message": message}
        self._store.append(job.id, [warning], self._store.get(job.id).log_position)
        self._on_change(job.id)

    def forget(self, job: Job) -> None:
        """Forget what was found and told during an attempt that is over."""
        self._warned.pop(job.id, None)
        self._unread.pop(job.id, None)
