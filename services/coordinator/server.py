"""A coordinator: all of its parts put together, and taken apart again."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lowdimfa.errors import InputError, LowdimfaError, ResourceError
from lowdimfa.services.coordinator.access import Gate
from lowdimfa.services.coordinator.attempt import RunRequests
from lowdimfa.services.coordinator.calls import Calls
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import JobState
from lowdimfa.services.coordinator.limits import ClientLimits
from lowdimfa.services.coordinator.notices import Notices
from lowdimfa.services.coordinator.page import ServiceJobs, page_of
from lowdimfa.services.coordinator.runner import JobRunner
from lowdimfa.services.coordinator.service import CoordinatorService
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.coordinator.supervisor import Supervisor
from lowdimfa.services.coordinator.web import Web
from lowdimfa.services.monitoring.coordinator_metrics import CoordinatorMetrics, Reading
from lowdimfa.services.rpc.certificates import server_credentials
from lowdimfa.services.rpc.options import server_options
from lowdimfa.services.rpc.v1 import coordinator_pb2, coordinator_pb2_grpc

SERVICE = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name

MESSAGE_BYTES = 4 << 20
"""Largest message that is taken: gRPC's own default."""

_CODES = sorted({LowdimfaError.code, *(kind.code for kind in LowdimfaError.__subclasses__())})

SHORTEST_PING = 0.1
"""Seconds; clients that ping more often than this are cut off."""

CALLS_AT_ONCE = 4096
"""Of all clients together; beyond these gRPC itself answers RESOURCE_EXHAUSTED."""

_log = logging.getLogger(__name__)


def require_safe(settings: ServeSettings) -> None:
    """Refuse to be open beyond this machine by accident.

    Raises
    ------
    InputError
        The API listens beyond loopback without TLS or without tokens, and nobody said that this is meant.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("--tls-cert and --tls-key", "one without the other", "both, or neither")
    if settings.client_ca is not None and settings.tls_cert is None:
        raise InputError(
            "--client-ca", "no --tls-cert and --tls-key", "TLS, in which clients show certificates"
        )
    if settings.on_loopback or settings.insecure:
        return
    missing = [
        name
        for name, value in (("--tls-cert and --tls-key", settings.tls_cert), ("--tokens", settings.tokens))
        if value is None
    ]
    if missing:
        raise InputError(
            f"--host {settings.host}",
            f"no {' and no '.join(missing)}",
            "TLS and tokens on every address but loopback",
            "'lowdimfa certs' and 'lowdimfa tokens add' make them; --insecure does without.",
        )


class Coordinator:
    """All parts of a running coordinator, in one event loop: it listens at once, and answers from `start` on.

    Parameters
    ----------
    settings
        Of the operator.
    store, runner
        Where jobs are kept and run.
    """

    def __init__(self, settings: ServeSettings, store: JobStore, runner: JobRunner) -> None:
        require_safe(settings)
        self._settings, self._store = settings, store
        self._metrics = CoordinatorMetrics()
        self._notices = Notices()
        requests = RunRequests(settings.storage, settings.job_metrics)
        copies = Copies(settings.state / "copies", settings.liveness)
        self._supervisor = Supervisor(store, runner, requests, copies, settings.liveness, self._notices.tell)
        self._metrics.read_from(self._reading)
        limits = ClientLimits(settings.max_streams_per_client)
        calls = Calls(Gate(settings.tokens), limits, self._metrics)
        self._service = CoordinatorService(store, copies, calls, self._notices, self._supervisor.wake)
        self._health = health.aio.HealthServicer()
        self._server: Any = grpc.aio.server(
            options=[
                # A client's liveness is its own: it may ping more often than a block's would.
                *server_options(settings.liveness, SHORTEST_PING),
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ],
            maximum_concurrent_rpcs=CALLS_AT_ONCE,
        )
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self._service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._web = Web(
            settings.http_host, settings.http_port, self._metrics.registry, store, copies, self._ailing
        )
        self._page = None
        try:
            jobs = ServiceJobs(self._service, calls, store, copies, asyncio.get_running_loop())
            self._page = page_of(settings, jobs)
            self.address = self._bind()
        except BaseException:
            self._close_pages()
            raise

    @property
    def page(self) -> str:
        """Address of the live page; empty if there is none."""
        scheme = "http" if self._settings.tls_cert is None else "https"
        return "" if self._page is None else f"{scheme}://{self._page.address}"

    def _close_pages(self) -> None:
        for pages in (self._page, self._web):
            if pages is not None:
                pages.close()

    def _bind(self) -> str:
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        target = f"{host}:{settings.port}"
        try:
            if settings.tls_cert is None or settings.tls_key is None:
                port = self._server.add_insecure_port(target)
            else:
                credentials = server_credentials(settings.tls_cert, settings.tls_key, settings.client_ca)
                port = self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise ResourceError(
                f"can't listen on {target} ({str(error).partition(';')[0]}); set --host or --port"
            ) from error
        return f"{host}:{port}"

    async def start(self) -> str:
        """Begin to answer and to look after jobs; return the address of the HTTP pages."""
        self._web.start()
        self._supervisor.start()
        await self._server.start()
        if self._page is not None:
            self._page.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self._web.address

    async def stop(self, grace: float) -> None:
        """Refuse new calls, end streams, and let go of the cluster; jobs run on."""
        await self._health.enter_graceful_shutdown()
        self._notices.close()
        await self._server.stop(grace)
        await asyncio.to_thread(self._supervisor.close)
        await asyncio.to_thread(self._close_pages)
        self._service.close()

    def _reading(self) -> Reading:
        health_of = self._supervisor.health
        return Reading(
            jobs={str(state): count for state, count in self._store.count_by_state().items()},
            failed=dict.fromkeys(_CODES, 0) | self._store.count_failed(_CODES),
            oldest_queued=min((job.queued for job in self._store.in_states([JobState.queued])), default=None),
            cluster_up=not health_of.cluster_error,
            cluster_at=health_of.cluster_at,
            round_at=health_of.round_at,
        )

    def _ailing(self) -> str:
        """Say what is wrong with the coordinator itself; a cluster that is away is not its own fault."""
        if not self._supervisor.alive:
            return "the supervisor's thread has ended"
        # Its longest call to the cluster is that which starts a local one, and then an agent.
        if self._supervisor.health.silent > 6 * self._settings.liveness:
            return "the supervisor has not finished a round for six times the liveness"
        try:
            self._store.count_by_state()
        except Exception as error:
            return f"the job store does not answer ({error})"
        return ""
