"""The coordinator's pages for machines: metrics, what Prometheus is to scrape, and whether it is well."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import ACTIVE
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.monitoring.pages import Application, Pages
from lowdimfa.services.monitoring.targets import entries, read_targets

_log = logging.getLogger(__name__)


class Web(Pages):
    """An HTTP server for ``/metrics``, ``/targets`` and ``/healthz``: it listens at once, and answers from `start` on.

    Parameters
    ----------
    host, port
        Where to listen. There is no authentication.
    registry
        For ``/metrics``.
    store, copies
        For ``/targets``: the jobs that are active, and where their lists are.
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
        copies: Copies,
        ailing: Callable[[], str],
    ) -> None:
        self._metrics: Application = make_wsgi_app(registry)
        self._store, self._copies, self._ailing = store, copies, ailing
        super().__init__(host, port, self._answer, what="metrics", settings="--http-host or --http-port")

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] != "GET":
            status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET and HEAD\n"
        elif path == "/metrics":
            return self._metrics(environ, start_response)
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
            path = self._copies.targets(job)
            try:
                found += entries(read_targets(path, job.id))
            except FileNotFoundError:
                continue  # not up yet, or it serves no metrics
            except (OSError, ValueError):
                _log.warning("the targets of job %s can't be read from %s", job.id, path)
        return found
