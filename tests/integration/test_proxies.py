"""The environment may name proxies for the outer world; what is on this machine, and between blocks, needs none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinator_thread import SPECIFICATION, coordinator

from lowdimfa.errors import PeerError
from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.rpc.options import client_options

VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Name a proxy in every variable that anything reads; it answers nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for name in VARIABLES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield listening


def asked(proxy: socket.socket) -> bool:
    """Return whether anybody has connected by now."""
    proxy.setblocking(False)
    try:
        proxy.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_coordinator_on_loopback_is_reached_by_no_proxy(proxy: socket.socket, tmp_path: Path) -> None:
    with coordinator(tmp_path) as service:
        for host in ("127.0.0.1", "localhost"):
            with CoordinatorClient(Connection(f"{host}:{service.port}", liveness=20.0)) as calls:
                job = calls.submit("a", SPECIFICATION, {})[0]["id"]
                assert calls.get(job)["id"] == job
    assert not asked(proxy)


def test_a_coordinator_elsewhere_is_reached_by_the_proxy_of_the_environment(proxy: socket.socket) -> None:
    heard: list[bytes] = []

    def listen() -> None:
        connection, _ = proxy.accept()
        with connection:
            heard.append(connection.recv(1000))

    proxy.settimeout(60)
    thread = threading.Thread(target=listen)
    thread.start()
    elsewhere = Connection("coordinator.example.org:50051", insecure=True, liveness=2.0)
    with CoordinatorClient(elsewhere) as calls, pytest.raises(PeerError):
        calls.get("a")
    thread.join(60)
    assert heard and heard[0].startswith(b"CONNECT coordinator.example.org:50051 ")


def test_blocks_never_use_a_proxy() -> None:
    assert ("grpc.enable_http_proxy", 0) in client_options(6.0)
