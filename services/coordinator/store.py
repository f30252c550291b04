"""What the coordinator needs of a job store; `lowdimfa.services.coordinator.sqlite_store` is the one it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lowdimfa.services.coordinator.jobs import Event, Job, JobState, Submission


class StoreError(Exception):
    """A request that the store's contents don't allow; each subclass is answered with a status of its own."""


class UnknownJobError(StoreError):
    """There is no such job."""


class KeyConflictError(StoreError):
    """The client key belongs to a job with another submission."""


class TransitionError(StoreError):
    """The job is in a state from which the wanted one can't be reached; the message names both."""


class QueueFullError(StoreError):
    """As many jobs are queued as the store takes."""


class NotWrittenError(StoreError):
    """The store can't be written now, as on a full disk: nothing of what was asked for is in it."""


class JobEvent(NamedTuple):
    """An event in a job's stream: sequences count from 1 within the job, without gaps."""

    sequence: int
    event: Event


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are listed: those that match all that is given."""

    states: frozenset[JobState] = frozenset()
    owner: str = ""
    name_prefix: str = ""


class JobStore(Protocol):
    """Keeps jobs and their events. Any thread may call; every change is durable when the call returns.

    What changes something raises `NotWrittenError` where that can't be written; then nothing has changed.

    A change of state is also an event ``{"event": "state", "time": …, "state": …, "detail": …, "attempt": …}`` in the
    job's stream, written in the same transaction.
    """

    def create(self, submission: Submission, cpus: float, gpus: float) -> tuple[Job, bool]:
        """Put a job into the queue; return it and True, or the job that has this client key and False.

        Raises
        ------
        KeyConflictError, QueueFullError
        """

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises
        ------
        UnknownJobError
        """

    def submission(self, job_id: str) -> Submission:
        """Return what was submitted.

        Raises
        ------
        UnknownJobError
        """

    def page(
        self, which: JobFilter, page_size: int, before: int | None = None
    ) -> tuple[list[Job], int | None]:
        """Return a page of jobs, the newest first, and where the next page begins; None after the last page.

        Parameters
        ----------
        which, page_size
            What to return, and how much of it at most.
        before
            What the call for the page before returned.
        """

    def in_states(self, states: Collection[JobState]) -> list[Job]:
        """Return all jobs in some states, the oldest submission first."""

    def queued(self, cpus: float, gpus: float, *, fitting: bool, limit: int) -> list[Job]:
        """Return the oldest queued jobs that a cluster of a size could ever run, or those that it couldn't."""

    def count_by_state(self) -> dict[JobState, int]:
        """Return how many jobs are in each state, those with none included."""

    def count_failed(self, codes: Collection[str]) -> dict[str, int]:
        """Return how many failed jobs have an error of each of some codes; all others count as internal."""

    def queued_before(self, job_id: str) -> int:
        """Return how many queued jobs were submitted before one.

        Raises
        ------
        UnknownJobError
        """

    def transition(
        self, job_id: str, to: JobState, detail: str, *, only_from: JobState | None = None, **changes: Any
    ) -> Job:
        """Change a job's state, with the event that says so, and other fields of `Job` by name.

        With ``only_from`` it has to be in that state, whatever else is possible: others may have changed it since it was
        read. Entering ``queued`` or ``starting`` clears what was of the last attempt, ``started``, ``ended`` and
        ``error``; ``starting`` also counts an attempt, sets ``started`` and clears ``stop_requested``; an end sets
        ``ended``.

        Raises
        ------
        UnknownJobError, TransitionError
        """

    def describe(self, job_id: str, detail: str) -> Job:
        """Say what a queued job waits for, with an event; nothing happens if that is known, or to any other job.

        Raises
        ------
        UnknownJobError
        """

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change fields of `Job` other than its state, without an event.

        Raises
        ------
        UnknownJobError
        """

    def append(self, job_id: str, events: Sequence[Event], log_position: int) -> Job:
        """Take in what a run logged, once: with the position in its log, and the progress that the events tell.

        The start of its run makes a job that is ``starting`` a ``running`` one: else what comes between the two would
        leave it starting until its end.

        Raises
        ------
        UnknownJobError
        """

    def events(self, job_id: str, after: int, limit: int) -> list[JobEvent]:
        """Return a job's events with sequences above ``after``, at most ``limit``.

        Raises
        ------
        UnknownJobError
        """

    def close(self) -> None:
        """Release the storage."""
