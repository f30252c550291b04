"""An object store for the tests: moto's server of S3, in an environment of its own, and a way to it that fails."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-objects" / "store"
PINS = Path(__file__).with_name("objects.txt")
SECRET = "a-secret-that-nobody-repeats"
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
SECONDS = 60


def server_program() -> Path:
    """Return moto's server, installed once; skip where it can't be had."""
    done = ENVIRONMENT / "complete"
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with FileLock(ENVIRONMENT.with_name("lock")):
        if not done.exists() or done.read_text() != PINS.read_text():
            venv.create(ENVIRONMENT, clear=True, with_pip=False)
            python = ENVIRONMENT / "bin" / "python"
            command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "-r", PINS]
            installed = subprocess.run(command, capture_output=True, text=True)
            if installed.returncode:
                pytest.skip(f"moto's server can't be installed: {installed.stderr[-500:]}")
            done.write_text(PINS.read_text())
    return ENVIRONMENT / "bin" / "moto_server"


class Store:
    """A server of S3 with one bucket; what is asked of it comes by a way that can fail.

    Attributes
    ----------
    address
        Of the bucket.
    environment
        What a command needs to reach it.
    way
        By which it is reached.
    """

    def __init__(self, way: Way) -> None:
        self.port, self.way, self.address = way.port, way, "s3://kept"
        self._process = self._start()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.server_port}",
        }

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Ask the server itself."""
        headers = {"Content-Type": "text/plain", "Authorization": SIGNED}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return bytes(answer.read())

    def reached_by(self, host: str) -> dict[str, str]:
        """Return what a command on another machine needs to reach it."""
        return self.environment | {"AWS_ENDPOINT_URL": f"http://{host}:{self.way.server_port}"}

    def restart(self) -> None:
        """Kill the server and start it again, with what it had: the one here has no disk, so that we keep it for it."""
        self.way.fault = "gone"
        names = re.findall("<Key>(.*?)</Key>", self.ask("GET", "/kept?list-type=2").decode())
        kept = {name: self.ask("GET", f"/kept/{name}") for name in names}
        self.end()
        self._process = self._start()
        for name, content in kept.items():
            self.ask("PUT", f"/kept/{name}", content)
        self.way.fault = ""

    def end(self) -> None:
        """Kill the server."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [server_program(), "-H", "127.0.0.1", "-p", str(self.port)]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": ""}, **quiet)
        until = time.monotonic() + SECONDS
        while True:
            try:
                self.ask("PUT", "/kept")
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    process.kill()
                    raise AssertionError("moto's server does not start") from None
                time.sleep(0.05)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let the server know nobody: it then checks keys and signatures."""
        self.ask("POST", "/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.ask("POST", "/moto-api/reset-auth", b"inf")


class Way(ThreadingHTTPServer):
    """Takes requests to the server and answers back.

    Attributes
    ----------
    fault
        What happens to requests that write to a checkpoint: nothing, ``busy`` (503), ``slow``, ``torn`` (the connection
        ends in the middle of the body); or to all of them: ``gone`` (it ends at once).
    struck
        Released for each request that the fault met.
    """

    daemon_threads = True

    def __init__(self, port: int, host: str) -> None:
        super().__init__((host, 0), _Relay)
        self.port, self.fault, self.struck = port, "", threading.Semaphore(0)


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece
    disable_nagle_algorithm = True
    server: Way

    def _relay(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.server.fault
        if fault == "gone":
            self.close_connection = True
            return
        fault = fault if self.command in ("PUT", "POST") and "/checkpoints/" in self.path else ""
        if fault:
            self.server.struck.release()
        if fault == "torn":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        if fault == "busy":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "slow":
            time.sleep(0.3)  # what a slow store takes, not a wait for anything
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=SECONDS)
        upstream.request(self.command, self.path, body or None, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        self.send_header(
            "Content-Length", answer.getheader("Content-Length", "0") if head else str(len(content))
        )
        self.end_headers()
        if not head:
            self.wfile.write(content)
        upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _relay

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Store]:
    """Run a server with an empty bucket, whose way is open at an address of this machine."""
    server_program()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Way(port, host) as way:
        thread = threading.Thread(target=way.serve_forever)
        thread.start()
        try:
            store = Store(way)
            try:
                yield store
            finally:
                store.end()
        finally:
            way.shutdown()
            thread.join()
