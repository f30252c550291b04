"""The gRPC server of one block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import grpc

from lowdimfa.errors import ResourceError
from lowdimfa.services.rpc.options import server_options
from lowdimfa.services.rpc.security import Security, TokenCheck


class Servicer(Protocol):
    """A service that can be added to a server."""

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service's methods with a `grpc.Server`; ``pool`` is the pool that runs them."""


class RpcServer:
    """A server that listens from construction and answers from `start` to `stop`.

    Parameters
    ----------
    name
        Whose server this is, such as ``block-2``; its threads are named after it.
    security
        Secrets of the run.
    liveness
        Seconds of silence after which a peer counts as lost.
    host
        Address of the interface to listen on, as peers reach it. The port is chosen by the system.
    max_workers
        Threads. Every open stream keeps one, an incoming activation stream two, a broken stream as many until
        its end is noticed: at least four more than the subscribers.

    Raises
    ------
    InputError
        The address is not a loopback address and there is no TLS.
    ResourceError
        The interface can't be listened on.
    """

    def __init__(
        self, name: str, security: Security, liveness: float, host: str = "127.0.0.1", max_workers: int = 16
    ) -> None:
        security.require_allowed(host)
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix=f"{name}-rpc")
        self._server = grpc.server(
            self._pool, interceptors=[TokenCheck(security)], options=server_options(liveness)
        )
        credentials = security.server_credentials()
        bracketed = f"[{host}]" if ":" in host else host
        try:
            if credentials is None:
                port = self._server.add_insecure_port(f"{bracketed}:0")
            else:
                port = self._server.add_secure_port(f"{bracketed}:0", credentials)
        except RuntimeError as error:
            raise ResourceError(f"{name} can't listen on {host}: {error}") from error
        self.address = f"{bracketed}:{port}"

    def add(self, *servicers: Servicer) -> None:
        """Add services; only before `start`."""
        for servicer in servicers:
            servicer.attach(self._server, self._pool)

    def start(self) -> None:
        """Begin to answer calls."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way ``grace`` seconds to end, cut them, and join all threads."""
        self._server.stop(grace).wait()
        self._pool.shutdown(wait=True)

    def __enter__(self) -> RpcServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace=0)
