"""HTTP servers for pages that machines read: metrics, targets, health."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

REQUEST_SECONDS = 10.0
"""A client that sends or takes nothing for so long is cut off."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


def listen(host: str, port: int, application: Application) -> WSGIServer:
    """Return a server that listens, and answers from its ``serve_forever`` on: a thread for each request.

    Parameters
    ----------
    host, port
        Where to listen; port 0 lets the system choose.
    application
        Answers GET. HEAD gets the headers of the same answer.

    Raises
    ------
    OSError
        The address or port can't be had.
    """
    server = (_Server6 if ":" in host else _Server)((host, port), _Handler)
    server.set_app(_with_head(application))
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, without looking the machine's own name up: that may take as long as the resolver does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: Prometheus asks every few seconds."""

    def address_string(self) -> str:
        """Return the client's address as it is."""
        return str(self.client_address[0])


def _with_head(application: Application) -> Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return application(environ, start_response)
        begun: list[Any] = []
        body = application(environ | {"REQUEST_METHOD": "GET"}, lambda *arguments: begun.extend(arguments))
        status, headers = begun[:2]
        length = ("Content-Length", str(sum(map(len, body))))
        start_response(status, [*(pair for pair in headers if pair[0] != length[0]), length])
        return []

    return answer
