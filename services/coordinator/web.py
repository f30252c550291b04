"""The coordinator's pages for machines: metrics, what Prometheus is to scrape, and whether it is well."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from lowdimfa.errors import ResourceError
from services.coordinator.jobs import ACTIVE
from services.coordinator.store import JobStore
from services.trainer.run_dir import targets_file

REQUEST_SECONDS = 10.0
"""A client that sends or takes nothing for so long is cut off."""

_log = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: Prometheus asks every few seconds."""


class Web:
    """An HTTP server for ``/metrics``, ``/targets`` and ``/healthz``.

    Parameters
    ----------
    host, port
        Where to listen. There is no authentication.
    registry
        For ``/metrics``.
    store
        For ``/targets``: the jobs that are active.
    ailing
        For ``/healthz``: says what is wrong, or nothing.

    Raises
    ------
    ResourceError
        The address or port can't be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        store: JobStore,
        ailing: Callable[[], str],
    ) -> None:
        self._metrics: Any = make_wsgi_app(registry)
        self._store, self._ailing = store, ailing
        try:
            self._server = make_server(host, port, self._answer, _Server, _Handler)
        except OSError as error:
            raise ResourceError(
                f"can't serve metrics on {host}:{port} ({error.strerror or error}); set --http-port"
            ) from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET\n"
        elif path == "/metrics":
            return self._metrics(environ, start_response)  # type: ignore[no-any-return]
        elif path == "/targets":
            status, kind, body = "200 OK", "application/json", json.dumps(self.targets()).encode()
        elif path == "/healthz":
            wrong = self._ailing()
            status = "503 Service Unavailable" if wrong else "200 OK"
            kind, body = "text/plain; charset=utf-8", f"{wrong or 'ok'}\n".encode()
        else:
            status, kind, body = "404 Not Found", "text/plain", b"/metrics, /targets or /healthz\n"
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def targets(self) -> list[dict[str, Any]]:
        """Return what Prometheus is to scrape now, in the format of its HTTP service discovery."""
        found: list[dict[str, Any]] = []
        for job in self._store.in_states(ACTIVE):
            path = targets_file(Path(job.run_dir))
            try:
                entries = json.loads(path.read_text("utf-8"))
                found += [
                    {"targets": list(entry["targets"]), "labels": dict(entry["labels"])} for entry in entries
                ]
            except FileNotFoundError:
                continue  # not up yet, or it serves no metrics
            except (OSError, ValueError, TypeError, KeyError):
                _log.warning("the targets of job %s can't be read from %s", job.id, path)
        return found


def overdue(since: float, liveness: float) -> bool:
    """Return whether something that should happen all the time has not for a whole liveness."""
    return time.time() - since > liveness
