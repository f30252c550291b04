"""The calls of the job service."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from lowdimfa.errors import StorageError
from lowdimfa.services.coordinator.access import Caller, Role, may_change, require_role
from lowdimfa.services.coordinator.calls import Calls
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import ACTIVE, ENDS, STOPPED_WAITING, Job, JobState
from lowdimfa.services.coordinator.logs import read_logs
from lowdimfa.services.coordinator.messages import event_to_message, job_to_message, state_of
from lowdimfa.services.coordinator.notices import Notices
from lowdimfa.services.coordinator.queue import DIGITS
from lowdimfa.services.coordinator.refusals import RefusedError, Violation
from lowdimfa.services.coordinator.store import JobFilter, JobStore, TransitionError
from lowdimfa.services.coordinator.submissions import checked
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from lowdimfa.services.rpc.v1 import coordinator_pb2_grpc
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.naming import named

EVENTS_AT_ONCE = 200
"""Read from the store for one watcher at a time."""

DEFAULT_PAGE, LARGEST_PAGE = 50, 500

LOG_THREADS = 8
"""In which logs are fetched and read: a slow storage keeps these busy, and not those that all other calls share."""


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers calls from the store; what takes a cluster is left to the supervisor.

    Parameters
    ----------
    store
        Where jobs are kept.
    copies
        Where their logs can be read.
    calls
        Lets them in.
    notices
        Wakes watchers.
    wake
        Wakes the supervisor.
    """

    def __init__(
        self,
        store: JobStore,
        copies: Copies,
        calls: Calls,
        notices: Notices,
        wake: Callable[[], None],
    ) -> None:
        self._store, self._copies, self._calls = store, copies, calls
        self._notices, self._wake = notices, wake
        self._log_threads = ThreadPoolExecutor(LOG_THREADS, "logs")

    def close(self) -> None:
        """Read no more logs."""
        self._log_threads.shutdown(wait=False, cancel_futures=True)

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.SubmitJobResponse:
        """Put a job into the queue."""

        def submit(caller: Caller) -> pb.SubmitJobResponse:
            submission, specification = checked(request, caller.name)
            workers, placement = specification.workers, specification.placement
            asked = (workers * placement.cpus_per_block, workers * placement.gpus_per_block)
            job, created = self._store.create(submission, *(round(amount, DIGITS) for amount in asked))
            if created:
                self._changed(job.id)
            return pb.SubmitJobResponse(job=self.shown(job), created=created)

        return await self._calls.answer("SubmitJob", Role.submit, context, submit)

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        """Return one job."""

        def get(_caller: Caller) -> pb.GetJobResponse:
            job = self._store.get(request.id)
            return pb.GetJobResponse(
                job=self.shown(job), specification=self._store.submission(job.id).specification
            )

        return await self._calls.answer("GetJob", Role.read, context, get)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """Return a page of jobs."""

        def page(_caller: Caller) -> pb.ListJobsResponse:
            states = {state_of(number) for number in request.states}
            known = frozenset(state for state in states if state is not None)
            if len(known) != len(states):
                raise RefusedError.invalid(Violation("states", "has a state that this service does not know"))
            size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
            which = JobFilter(known, request.owner, request.name_prefix)
            jobs, following = self._store.page(which, size, _place(request.page_token))
            return pb.ListJobsResponse(
                jobs=[self.shown(job) for job in jobs],
                next_page_token="" if following is None else _token(following),
            )

        return await self._calls.answer("ListJobs", Role.read, context, page)

    async def StopJob(self, request: pb.StopJobRequest, context: Any) -> pb.StopJobResponse:
        """Ask a job to stop."""

        def stop(caller: Caller) -> pb.StopJobResponse:
            job = self._of(caller, request.id, "StopJob")
            while True:
                try:
                    stopped = self._stop(job, request.mode == pb.STOP_MODE_NOW)
                    break
                except TransitionError:  # the supervisor was quicker, and may have made a trainer
                    job = self._store.get(job.id)
            self._changed(job.id)
            return pb.StopJobResponse(job=self.shown(stopped))

        return await self._calls.answer("StopJob", Role.submit, context, stop)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:
        """Put a job back into the queue."""

        def resume(caller: Caller) -> pb.ResumeJobResponse:
            job = self._of(caller, request.id, "ResumeJob")
            if job.state not in (JobState.failed, JobState.stopped):
                # What runs may go back to the queue, too: but its trainer would go on beside the next one.
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"job {job.id} is {job.state}; one that failed or was stopped can be resumed",
                )
            _require_checkpoint(job)
            job = self._store.transition(job.id, JobState.queued, "", only_from=job.state)
            self._changed(job.id)
            return pb.ResumeJobResponse(job=self.shown(job))

        return await self._calls.answer("ResumeJob", Role.submit, context, resume)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.JobEvent]:
        """Stream a job's events."""
        async with self._calls.stream("WatchJob", context):
            after = request.after_sequence
            job = await asyncio.to_thread(self._store.get, request.id)
            if after > job.last_sequence:
                raise RefusedError(
                    grpc.StatusCode.OUT_OF_RANGE,
                    f"job {job.id} has {job.last_sequence} events so far, none after {after}",
                )
            while not self._notices.closed:
                news = self._notices.subscribe(request.id)
                job = await asyncio.to_thread(self._store.get, request.id)
                events = await asyncio.to_thread(self._store.events, request.id, after, EVENTS_AT_ONCE)
                for event in events:
                    yield event_to_message(event)
                    after = event.sequence
                if not events and after == job.last_sequence:
                    if job.state in ENDS:
                        return
                    await news.wait()
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the service is ending; watch again", "peer_lost")

    async def GetLogs(self, request: pb.GetLogsRequest, context: Any) -> AsyncIterator[pb.LogLine]:
        """Stream what a job's processes wrote."""
        async with self._calls.stream("GetLogs", context):
            job = await asyncio.to_thread(self._store.get, request.id)

            def follow() -> bool:
                return (
                    request.follow
                    and not self._notices.closed
                    and self._store.get(request.id).state not in ENDS
                )

            def refresh(going_on: bool) -> None:
                with suppress(*[StorageError] * going_on):  # it comes with the next look
                    self._copies.refresh(job, logs=True, now=not going_on)

            folder = self._copies.folder(job)
            async for line in read_logs(
                folder, request.sources, request.tail, follow, refresh, self._log_threads
            ):
                yield pb.LogLine(source=line.source, text=line.text)

    def shown(self, job: Job) -> pb.Job:
        """Return a job's message, with how many are before it in the queue unless it waits for something of its own."""
        detail = job.detail
        if job.state is JobState.queued and not detail:
            before = self._store.queued_before(job.id)
            detail = f"behind {before} job{'s' if before != 1 else ''}" if before else "is next"
        elif job.state is JobState.running and job.steps:
            detail = f"step {job.step:,} of {job.steps:,}"
        return job_to_message(job, detail)

    def _of(self, caller: Caller, job_id: str, method: str) -> Job:
        """Return a job that the caller may change."""
        job = self._store.get(job_id)
        if not may_change(caller, job.owner):
            require_role(caller, Role.admin, f"{method} of somebody else's job")
        return job

    def _stop(self, job: Job, now: bool) -> Job:
        """Take a job out of the queue, or ask for its end; only as long as it is in the state that was seen."""
        if job.state is JobState.queued:
            return self._store.transition(job.id, JobState.stopped, STOPPED_WAITING, only_from=job.state)
        if job.state not in ACTIVE:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION, f"job {job.id} is {job.state} already; nothing runs"
            )
        if job.state is not JobState.stopping:
            # In one: an attempt that began between the request and the state would have only one of them.
            request = "now" if now else "graceful"
            return self._store.transition(
                job.id, JobState.stopping, "", only_from=job.state, stop_requested=request
            )
        return self._store.update(job.id, stop_requested="now") if now else job

    def _changed(self, job_id: str) -> None:
        self._notices.tell(job_id)
        self._wake()


def _require_checkpoint(job: Job) -> None:
    if named(job.run_dir) and not CheckpointStore(job.run_dir).list():
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"job {job.id} has no checkpoint to go on from; submit it again with run.checkpoint_every",
        )


def _token(place: int) -> str:
    return base64.urlsafe_b64encode(f"before:{place}".encode()).decode()


def _place(token: str) -> int | None:
    if not token:
        return None
    try:
        kind, _, place = (
            base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().partition(":")
        )
        if kind == "before" and place.isascii() and place.isdecimal() and len(place) < 19:
            return int(place)
    except (binascii.Error, UnicodeError):
        pass
    raise RefusedError.invalid(Violation("page_token", "not one that this service gave"))
