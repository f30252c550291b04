"""Serve a process's metrics over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from lowdimfa.errors import ResourceError
from lowdimfa.services.monitoring.pages import listen


@dataclass(frozen=True)
class Exporter:
    """A running HTTP server for ``/metrics``."""

    server: WSGIServer
    thread: Thread

    def close(self) -> None:
        """Stop serving, free the port and join the thread."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def start_exporter(registry: CollectorRegistry, address: str, port: int = 0) -> tuple[Exporter, int]:
    """Serve a registry from a thread; return the exporter and the port that it is bound to.

    Parameters
    ----------
    registry
        Of `BlockMetrics` or `TrainerMetrics`.
    address
        Address to bind to. The pages have no authentication: name a loopback or a private one.
    port
        0 lets the system choose.

    Raises
    ------
    ResourceError
        The address or port can't be had.
    """
    try:
        server = listen(address, port, make_wsgi_app(registry))
    except OSError as error:
        raise ResourceError(f"The metrics can't be served on {address}:{port}: {error}.") from error
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return Exporter(server, thread), server.server_port
