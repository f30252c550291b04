"""Serve a process's metrics over HTTP, and tell Prometheus where to find them."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import NotRequired, TypedDict
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from lowdimfa.errors import ResourceError
from lowdimfa.services.monitoring.pages import listen

_log = logging.getLogger(__name__)


class Target(TypedDict):
    """One process to scrape: ``address`` is ``host:port``, ``role`` is block, head or trainer."""

    address: str
    job: str
    role: str
    block: NotRequired[str]
    replica: NotRequired[str]


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


def write_targets(path: Path, targets: Sequence[Target]) -> None:
    """Write a target file for Prometheus' file-based service discovery, in place of the old one.

    The file is renamed into place, so a reader sees the old or the new one; its folder is made. Prometheus may run as
    another user: the file has its rights by the umask. A finished run writes none. A disk that has no room for it is
    only a line in the log: nobody trains worse for it.
    """
    entries = [
        {"targets": [target["address"]], "labels": {k: v for k, v in target.items() if k != "address"}}
        for target in targets
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(entries, indent=2))
    except OSError as error:
        _log.warning("Prometheus will not find this run: %s can't be written (%s)", path, error.strerror)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
