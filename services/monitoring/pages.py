"""HTTP servers: for what machines read (metrics, targets, health), and for the live page."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from io import BufferedReader, RawIOBase
from socketserver import TCPServer, ThreadingMixIn
from threading import Condition, Semaphore, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from lowdimfa.errors import ResourceError

REQUEST_SECONDS = 10.0
"""A client that has not sent its whole request in so long, or takes nothing of the answer, is cut off."""

LAST_ANSWERS_SECONDS = 2.0
"""For which answers that are under way may go on when a server closes."""

MOST_AT_ONCE = 256
"""Connections; more are closed unheard."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""

_log = logging.getLogger(__name__)


class Pages:
    """A server that listens at once, and answers from `start` on.

    Parameters
    ----------
    host, port, application, tls
        As for `listen`.
    what, settings
        What it serves and which options set the address, for the message.

    Attributes
    ----------
    address
        ``host:port``.

    Raises
    ------
    ResourceError
        The address or port can't be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        application: Application,
        *,
        what: str,
        settings: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = listen(host, port, application, tls)
        except OSError as error:
            raise ResourceError(
                f"can't serve {what} on {shown}:{port} ({error.strerror or error}); set {settings}"
            ) from error
        self.port = self._server.server_port
        self.address = f"{shown}:{self.port}"
        self._thread = Thread(target=self._server.serve_forever, name=what, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving, once what is being answered is answered, and free the port."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.answers.wait(LAST_ANSWERS_SECONDS)


def listen(host: str, port: int, application: Application, tls: ssl.SSLContext | None = None) -> _Server:
    """Return a server that listens, and answers from its ``serve_forever`` on: a thread for each request.

    Parameters
    ----------
    host, port
        Where to listen; port 0 lets the system choose.
    application
        Answers GET. HEAD gets the headers of the same answer.
    tls
        Certificate and key, where the connections are to be encrypted.

    Raises
    ------
    OSError
        The address or port can't be had.
    """
    server = (_Server6 if ":" in host else _Server)((host, port), _Handler)
    server.tls = tls
    server.set_app(_with_head(application))
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        super().__init__(address, handler)
        self._room = Semaphore(MOST_AT_ONCE)
        self.answers = _Answers()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, or close it where too many have one."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer in the connection's own thread, which is also the one that waits for the client's handshake."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(REQUEST_SECONDS)
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say little of connections that break off, and of clients that speak no TLS."""
        _log.debug("a connection from %s broke off", client_address, exc_info=True)

    def shutdown(self) -> None:
        """Stop answering at once: by itself `serve_forever` looks twice a second whether it is to end."""
        with contextlib.suppress(OSError):  # where a socket that listens can't be shut down
            self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def server_bind(self) -> None:
        """Bind, without looking the machine's own name up: that may take as long as the resolver does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Answers:
    """How many requests have come whose answers haven't been given."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = Condition()

    def count(self, change: int) -> None:
        """Note that one has begun, 1, or ended, -1."""
        with self._changed:
            self._open += change
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, seconds)


class _Handler(WSGIRequestHandler):
    server: _Server
    _is_counted = False

    def setup(self) -> None:
        """Bound the whole of what is read, however slowly it drips in."""
        super().setup()
        self.connection.settimeout(REQUEST_SECONDS)
        self.rfile = BufferedReader(_Arriving(self.connection, REQUEST_SECONDS))

    def parse_request(self) -> bool:
        """Read the request."""
        is_whole = super().parse_request()
        self._is_counted = True
        self.server.answers.count(1)
        return is_whole

    def finish(self) -> None:
        """End the answer."""
        try:
            super().finish()
        finally:
            if self._is_counted:
                self.server.answers.count(-1)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: Prometheus asks every few seconds."""

    def address_string(self) -> str:
        """Return the client's address as it is."""
        return str(self.client_address[0])


class _Arriving(RawIOBase):
    """What a connection receives within some seconds from now, taken together."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)  # for each part of the answer


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
