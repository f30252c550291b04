"""The service's live page: an in-process client of its calls, under the same tokens, roles and limits."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cryptography.fernet import Fernet

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.access import Caller, Role, may_change
from lowdimfa.services.coordinator.calls import Calls
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import ENDS, TRANSITIONS, Job, JobState
from lowdimfa.services.coordinator.messages import event_to_message, job_fields, message_to_event
from lowdimfa.services.coordinator.private import own_file
from lowdimfa.services.coordinator.refusals import RefusedError
from lowdimfa.services.coordinator.service import CoordinatorService
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.coordinator.store import JobEvent, JobStore
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.monitoring.live.app import LivePage
from lowdimfa.services.monitoring.live.sessions import Sessions
from lowdimfa.services.monitoring.live.source import Fields, Look, Refusal, Visitor
from lowdimfa.services.monitoring.pages import Pages
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb

EVENTS_AT_ONCE = 2000
TAIL, LONGEST_LINE = 200, 2000
"""Lines of each process's log, and characters of a line, that the page shows."""

PATIENCE = 30.0
"""Seconds for the service to answer."""

_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

T = TypeVar("T")

_access_log = logging.getLogger("lowdimfa.access")


class _Context:
    """What the service asks of a call's context; an error of it is a `Refusal`."""

    def __init__(self, visitor: Visitor, routine: bool) -> None:
        self._visitor, self.routine = visitor, routine

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", self._visitor.authorization),)

    def peer(self) -> str:
        return f"page:{self._visitor.address}:"

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Do nothing: a page sees by its own first answer that it was let in."""

    async def abort_with_status(self, status: grpc.Status) -> None:
        raise Refusal(_STATUS.get(status.code, HTTPStatus.INTERNAL_SERVER_ERROR), status.details)


class ServiceJobs:
    """The jobs of a service, by its own calls: see `Source`.

    Parameters
    ----------
    service, calls
        What answers, and what lets in.
    store, copies
        Where jobs are kept, and what Prometheus can scrape of them.
    loop
        In which the service runs.
    """

    only = ""

    def __init__(
        self,
        service: CoordinatorService,
        calls: Calls,
        store: JobStore,
        copies: Copies,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._service, self._calls, self._loop = service, calls, loop
        self._store, self._copies = store, copies

    def enter(self, visitor: Visitor) -> str:
        """Return the name of the visitor's token."""
        try:
            return self._calls.gate.caller(visitor.authorization).name
        except RefusedError as refused:
            if visitor.authorization:
                _access_log.warning("page - %s from %s", refused.status.name, visitor.address)
            raise Refusal(_STATUS[refused.status], refused.message) from refused

    def jobs(self, visitor: Visitor, page: str) -> tuple[list[Fields], str]:
        """Return a page of jobs."""
        request = pb.ListJobsRequest(page_token=page)
        answer = self._wait(self._service.ListJobs(request, _Context(visitor, routine=True)))
        return [job_fields(job) for job in answer.jobs], answer.next_page_token

    def look(self, visitor: Visitor, job_id: str, after: int) -> Look:
        """Return what is new of a job."""

        def look(caller: Caller) -> Look:
            job = self._store.get(job_id)
            numbered = self._store.events(job_id, after, EVENTS_AT_ONCE) if after < job.last_sequence else []
            return Look(
                job=job_fields(self._service.shown(job)),
                over=job.state in ENDS,
                actions=_actions(job) if may_change(caller, job.owner) else (),
                targets=self._copies.targets(job),
                events=[_as_promised(event) for event in numbered],
                position=numbered[-1].sequence if numbered else after,
                more=len(numbered) == EVENTS_AT_ONCE,
            )

        return self._wait(self._calls.answer("GetJob", Role.read, _Context(visitor, routine=True), look))

    def specification(self, visitor: Visitor, job_id: str) -> str:
        """Return a job's specification as submitted."""
        request = pb.GetJobRequest(id=job_id)
        answer = self._wait(self._service.GetJob(request, _Context(visitor, routine=True)))
        return str(answer.specification)

    def logs(self, visitor: Visitor, job_id: str) -> dict[str, str]:
        """Return the last lines of a job's processes."""

        async def read() -> dict[str, str]:
            lines: dict[str, list[str]] = {}
            request = pb.GetLogsRequest(id=job_id, tail=TAIL)
            async for line in self._service.GetLogs(request, _Context(visitor, routine=True)):
                lines.setdefault(line.source, []).append(line.text[:LONGEST_LINE])
            return {source: "\n".join(texts) for source, texts in lines.items()}

        return self._wait(read())

    def stop(self, visitor: Visitor, job_id: str, now: bool) -> None:
        """Ask a job to stop."""
        request = pb.StopJobRequest(id=job_id, mode=pb.STOP_MODE_NOW if now else pb.STOP_MODE_GRACEFUL)
        self._wait(self._service.StopJob(request, _Context(visitor, routine=False)))

    def resume(self, visitor: Visitor, job_id: str) -> None:
        """Put a job back into the queue."""
        request = pb.ResumeJobRequest(id=job_id)
        self._wait(self._service.ResumeJob(request, _Context(visitor, routine=False)))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what a call in the service's event loop comes to."""
        away = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service does not answer now; try again")
        try:
            answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError as error:  # the loop has ended
            call.close()
            raise away from error
        try:
            return answer.result(PATIENCE)
        except (TimeoutError, CancelledError) as error:
            answer.cancel()
            raise away from error


def _actions(job: Job) -> tuple[str, ...]:
    if job.state in ENDS:
        return ("resume",) if JobState.queued in TRANSITIONS[job.state] else ()
    return ("now",) if job.state is JobState.stopping else ("stop",)


def _as_promised(numbered: JobEvent) -> Event:
    """Return an event as the protocol has it: what a run logged may be anything."""
    if (
        numbered.event.get("event") == "progress"
    ):  # there may be a million; whoever draws them believes nothing
        return numbered.event
    return message_to_event(event_to_message(numbered))


def page_of(settings: ServeSettings, jobs: ServiceJobs) -> Pages | None:
    """Return the live page of a service, on a port of its own; None if it has none.

    Raises
    ------
    InputError
        Certificate or key can't be used.
    ResourceError
        The port can't be had.
    """
    if settings.page_port is None or not settings.page_is_safe:
        return None
    application: list[LivePage] = []
    tls = _tls(settings)
    pages = Pages(
        settings.host,
        settings.page_port,
        lambda environ, start_response: application[0](environ, start_response),
        what="the live page",
        settings="--page-port, or --no-page",
        tls=tls,
    )
    sessions = Sessions(_key(settings.state / "page.key"), secure=tls is not None, port=pages.port)
    application.append(LivePage(jobs, sessions))
    return pages


def _tls(settings: ServeSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            "--tls-cert, --tls-key and --client-ca", f"files that can't be used ({error})", "PEM files"
        ) from error
    return context


def _key(path: Path) -> bytes:
    """Return the key of sessions, kept beside the job store so that they outlive a restart."""
    kept = own_file(path)
    key = kept.read_bytes()
    try:
        Fernet(key)
    except ValueError:
        key = Fernet.generate_key()
        kept.write_bytes(key)
    return key
