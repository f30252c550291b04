"""Brings every job from the queue to its end: the one thread that deals with the cluster."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lowdimfa.errors import (
    BlockWithoutRoomError,
    InputError,
    NoRoomError,
    StoppedError,
    error_of,
)
from lowdimfa.services.coordinator.attempt import RunRequests, lost, outcome_in, trainer_of
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.intake import Intake
from lowdimfa.services.coordinator.jobs import ACTIVE, STOPPED_WAITING, Event, Job, JobState
from lowdimfa.services.coordinator.patience import Patience
from lowdimfa.services.coordinator.queue import AWAY, Rests, start_order
from lowdimfa.services.coordinator.recoveries import Recoveries
from lowdimfa.services.coordinator.runner import Capacity, ClusterError, Condition, JobRunner, Look
from lowdimfa.services.coordinator.store import JobStore, TransitionError

ROUND_SECONDS = 0.5
"""Pause between rounds."""

_log = logging.getLogger(__name__)


@dataclass
class Health:
    """How the supervisor gets on: when it last finished a round, when it last saw the cluster, what was wrong then.

    The clock may be set meanwhile: `silent` counts without it.
    """

    round_at: float = field(default_factory=time.time)
    _finished: float = field(default_factory=time.monotonic)
    cluster_at: float = 0.0
    cluster_error: str = "not looked at yet"

    def finished_round(self) -> None:
        """Note that a round was finished now."""
        self.round_at, self._finished = time.time(), time.monotonic()

    @property
    def silent(self) -> float:
        """Seconds since a round was finished."""
        return time.monotonic() - self._finished


class Supervisor:
    """Starts, watches and ends jobs.

    Parameters
    ----------
    store, runner
        Where jobs are kept, and where they run.
    requests
        Makes what a trainer is told.
    copies
        Where events of jobs can be read.
    liveness
        From which all deadlines derive.
    on_change
        Called with a job's id after its events grew.
    """

    def __init__(
        self,
        store: JobStore,
        runner: JobRunner,
        requests: RunRequests,
        copies: Copies,
        liveness: float,
        on_change: Callable[[str], None],
    ) -> None:
        self.health = Health()
        self._store, self._runner, self._requests, self._copies = store, runner, requests, copies
        self._liveness, self._on_change = liveness, on_change
        self._recoveries = Recoveries(store, copies)
        self._woken, self._closed = threading.Event(), threading.Event()
        self._intake = Intake(store, copies, liveness, on_change, self.wake)
        self._patience = Patience(store, runner, self._intake.warn)
        self._told: set[str] = set()
        self._rests = Rests(liveness)
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.health.finished_round()  # its rounds count from here
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round at once; any thread may call."""
        self._woken.set()

    def close(self) -> None:
        """End the thread and let the cluster go; jobs run on."""
        self._closed.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._runner.close()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._woken.clear()
            try:
                self.round()
            except Exception:  # a full disk, for example: it may pass, and jobs run on meanwhile
                _log.exception("a round of the supervisor failed")
            self._woken.wait(ROUND_SECONDS)

    def round(self) -> None:
        """Look after all active jobs, then start what has room."""
        for job in self._store.in_states(ACTIVE):  # first: who watches need not wait for the cluster
            self._guarded(self._intake.take_in, job)
        active = self._store.in_states(ACTIVE)
        looks, capacity = self._look([trainer_of(job) for job in active])
        for job in active:
            look = looks.get(trainer_of(job))
            if look is not None:
                self._guarded(self._attend, job, look)
        if capacity is not None:
            self._fill(capacity)
        self.health.finished_round()

    def _guarded(self, work: Callable[..., object], job: Job, *arguments: Look) -> None:
        """Do something for one job, whose trouble is not the others'."""
        try:
            work(job, *arguments)
        except ClusterError as error:
            self._unreachable(error)
        except TransitionError as error:  # somebody stopped it meanwhile: the next round knows that
            _log.info("job %s: %s", job.id, error)
        except Exception as error:
            _log.exception("job %s", job.id)
            self._intake.warn(job, f"the coordinator failed at this job ({type(error).__name__}: {error})")

    def _look(self, trainers: list[str]) -> tuple[dict[str, Look], Capacity | None]:
        if time.monotonic() < self._retry_at:
            return {}, None
        try:
            looks, capacity = dict(self._runner.look(trainers)), self._runner.capacity()
        except ClusterError as error:
            self._unreachable(error)
            return {}, None
        self.health.cluster_at, self.health.cluster_error = time.time(), ""
        return looks, capacity

    def _unreachable(self, error: ClusterError) -> None:
        """Note it for people, and leave the cluster alone for a while; no job fails for that."""
        self._retry_at = time.monotonic() + self._liveness / 12
        self.health.cluster_error = str(error)
        for job in self._store.queued(float("inf"), float("inf"), fitting=True, limit=1):
            self._describe(job, f"{AWAY}: {error}")

    def _attend(self, job: Job, look: Look) -> None:
        trainer = trainer_of(job)
        if look.condition in (Condition.ended, Condition.lost) and not self._never_made(job, look):
            if self._intake.is_complete(job):
                while (after := self._intake.take_in(job)) != job:
                    job = after
                self._conclude(job, look)
            return
        if job.state is JobState.starting and trainer not in self._told:
            # After a restart too: nobody knows how far the last coordinator came, and a trainer runs only once.
            submission, lost_at = self._store.submission(job.id), self._recoveries.lost_at(job)
            there = look.condition is not Condition.lost
            try:
                request = self._requests.make(job, submission, lost_at, ready=there)
            except InputError as error:  # a newer release may refuse what an older one took
                verdict: Event = {"event": "failed", "time": time.time(), **error.as_event()}
                self._store.append(job.id, [verdict], job.log_position)
                self._end(job, verdict)
                self._on_change(job.id)
                return
            self._runner.start(trainer, request)
            self._told.add(trainer)
        self._patience.watch(job, look)
        if job.stop_requested:
            self._patience.stop(job)

    def _never_made(self, job: Job, look: Look) -> bool:
        """Whether a trainer is missing because the coordinator that should have started it went before it could."""
        return (
            look.condition is Condition.lost
            and job.state is JobState.starting
            and trainer_of(job) not in self._told
            and outcome_in(self._store, job) is None
        )

    def _conclude(self, job: Job, look: Look) -> None:
        """Bring a job whose trainer has ended to its end, or back to the queue."""
        outcome = outcome_in(self._store, job) or look.outcome or lost(self._store, job)
        verdict = self._recoveries.verdict(job, look, outcome)
        job = self._intake.take_in(job)  # which the verdict may have added to
        if verdict is None:
            self._go_on(job)
            return
        self._let_go(job)
        if verdict["event"] == "failed" and verdict != outcome_in(self._store, job):
            self._store.append(job.id, [{"time": time.time(), **verdict}], job.log_position)
        self._end(job, verdict)
        self._copies.forget(job)
        self._intake.forget(job)
        self._on_change(job.id)

    def _go_on(self, job: Job) -> None:
        """Put a job whose trainer was lost back into the queue, once its pause has passed."""
        self._let_go(job)
        if not self._recoveries.resting(job):
            self._intake.forget(job)
            self._store.transition(job.id, JobState.queued, self._recoveries.detail(job))
            self._on_change(job.id)

    def _let_go(self, job: Job) -> None:
        """Forget a trainer that has ended, and free what it still holds."""
        trainer = trainer_of(job)
        self._runner.release(trainer)
        self._copies.forget_targets(job)
        self._patience.forget(job)
        self._told.discard(trainer)

    def _end(self, job: Job, outcome: Event) -> None:
        error = None if outcome["event"] == "finished" else error_of(outcome)
        found_none = isinstance(error, NoRoomError | BlockWithoutRoomError)
        no_room = found_none and job.state is JobState.starting
        self._rests.over(job, no_room)
        if error is None:
            if job.state is JobState.starting:  # it was over before it was seen to run
                self._store.transition(job.id, JobState.running, "")
            self._store.transition(job.id, JobState.finished, "")
        elif isinstance(error, StoppedError):
            said = f"stopped after step {error.step:,}" if isinstance(error.step, int) else error.message
            self._store.transition(job.id, JobState.stopped, said)
        elif found_none and job.stop_requested:
            self._store.transition(job.id, JobState.stopped, STOPPED_WAITING)
        elif no_room:  # taken by others, or of no such shape
            self._store.transition(job.id, JobState.queued, error.message)
        else:
            self._store.transition(job.id, JobState.failed, error.message, error=outcome)

    def _fill(self, capacity: Capacity) -> None:
        """Start queued jobs in order, as far as there is room, and say what the others wait for."""
        order = start_order(self._store, capacity, self._rests.resting, self._rests.refused)
        for job, reason in order.waiting:
            self._describe(job, reason)
        for job in order.starting:
            try:
                self._store.transition(job.id, JobState.starting, "")
            except TransitionError:  # stopped meanwhile
                continue
            self._on_change(job.id)
            self._woken.set()  # its trainer is made in the next round

    def _describe(self, job: Job, detail: str) -> None:
        self._store.describe(job.id, detail)
        self._on_change(job.id)
