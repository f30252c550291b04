"""The HTTP pages: HEAD gets what GET gets but for the body, and nobody's resolver or IP version is in the way."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from lowdimfa.errors import ResourceError
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import JobState, Submission
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.coordinator.web import Web
from lowdimfa.services.monitoring.coordinator_metrics import CoordinatorMetrics
from lowdimfa.services.monitoring.exporter import start_exporter
from lowdimfa.services.monitoring.metrics import TrainerMetrics
from lowdimfa.services.monitoring.pages import Pages
from lowdimfa.services.monitoring.targets import MOST_BYTES, read_targets, write_targets
from lowdimfa.services.trainer.run_dir import targets_file


@contextmanager
def web(folder: Path, host: str = "127.0.0.1", registry: CollectorRegistry | None = None) -> Iterator[Web]:
    store = SqliteJobStore(folder / "state" / "jobs.sqlite3", folder / "runs")
    pages = Web(
        host, 0, registry or CoordinatorMetrics().registry, store, Copies(folder / "copies", 10.0), str
    )
    pages.start()
    try:
        yield pages
    finally:
        pages.close()
        store.close()


def answer(address: str, method: str, path: str) -> tuple[int, str | None, str | None, bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.headers["Content-Type"], reply.headers["Content-Length"], reply.read()
    finally:
        connection.close()


def require_head_is_get(address: str, path: str) -> None:
    status, kind, length, body = answer(address, "GET", path)
    assert answer(address, "HEAD", path) == (status, kind, length, b"")
    assert length == str(len(body))


@pytest.mark.parametrize("path", ["/metrics", "/targets", "/healthz", "/nothing"])
def test_head_is_get_without_the_body_on_every_page_of_the_service(tmp_path: Path, path: str) -> None:
    registry = TrainerMetrics("run").registry  # its values stand still
    with web(tmp_path, registry=registry) as pages:
        require_head_is_get(pages.address, path)
        assert answer(pages.address, "GET", path)[0] == (404 if path == "/nothing" else 200)
        assert answer(pages.address, "POST", path)[0] == 405


def listed(pages: Web, labels: dict[str, str]) -> tuple[Path, str]:
    """Begin a job whose list has one process; return the list's place and the job's id."""
    job, _ = pages._store.create(Submission("run", "ada", "model: 1", {}, ""), 1, 0)
    pages._store.transition(job.id, JobState.starting, "")
    path = targets_file(job.run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"targets": ["h:1"], "labels": labels}]))
    return path, job.id


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.symlink_to(path.replace(path.with_name("elsewhere")))


def grow(path: Path) -> None:
    path.write_text(path.read_text() + " " * MOST_BYTES)


def nest(path: Path) -> None:
    path.write_text("[" * 100_000)


def name_no_text(path: Path) -> None:
    path.write_text(path.read_text().replace('"h:1"', "1"))


SPOILED = [replace_by_pipe, replace_by_link, grow, nest, name_no_text]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_list_that_job_code_has_spoiled_holds_up_and_misleads_nobody(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    with web(tmp_path) as pages:
        (spoiled, _), (_, good) = (listed(pages, {"role": "trainer"}) for _ in range(2))
        assert len(json.loads(answer(pages.address, "GET", "/targets")[3])) == 2
        spoil(spoiled)
        (entry,) = json.loads(answer(pages.address, "GET", "/targets")[3])
        assert entry == {"targets": ["h:1"], "labels": {"job": good, "role": "trainer"}}
        assert answer(pages.address, "GET", "/healthz")[0] == 200


def test_a_list_gives_prometheus_the_labels_of_its_own_job_and_no_orders(tmp_path: Path) -> None:
    with web(tmp_path) as pages:
        said = {"job": "another", "role": "block", "block": "3", "replica": "1"}
        orders = {"__scheme__": "https", "__metrics_path__": "/x", "team": "y"}
        _, job = listed(pages, said | orders)
        (entry,) = json.loads(answer(pages.address, "GET", "/targets")[3])
        assert entry == {"targets": ["h:1"], "labels": said | {"job": job}}


def test_a_list_in_a_folder_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    write_targets(tmp_path / "elsewhere" / "run.json", [{"address": "h:1", "job": "run", "role": "trainer"}])
    (tmp_path / "targets").symlink_to("elsewhere")
    assert read_targets(tmp_path / "elsewhere" / "run.json", "run")
    with pytest.raises(OSError, match="targets"):
        read_targets(tmp_path / "targets" / "run.json", "run")


def test_head_is_get_without_the_body_on_the_pages_of_a_run() -> None:
    exporter, port = start_exporter(TrainerMetrics("run").registry, "127.0.0.1")
    try:
        require_head_is_get(f"127.0.0.1:{port}", "/metrics")
    finally:
        exporter.close()


def test_pages_listen_at_once_but_answer_from_their_start_on(tmp_path: Path) -> None:
    store = SqliteJobStore(tmp_path / "jobs.sqlite3", tmp_path / "runs")
    copies = Copies(tmp_path / "copies", 10.0)
    first = Web("127.0.0.1", 0, CollectorRegistry(), store, copies, str)
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(ResourceError, match="--http-port"):
        Web("127.0.0.1", port, CollectorRegistry(), store, copies, str)
    first.close()  # without having been started
    Web("127.0.0.1", port, CollectorRegistry(), store, copies, str).close()
    store.close()


def test_the_pages_need_no_resolver_and_speak_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> str:
        raise AssertionError("a name is looked up")

    monkeypatch.setattr(socket, "getfqdn", away)
    monkeypatch.setattr(socket, "gethostbyaddr", away)
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with web(tmp_path, "::1") as pages:
        assert pages.address.startswith("[::1]:")
        assert answer(pages.address, "GET", "/healthz")[0] == 200


def test_connections_beyond_a_number_are_closed_unheard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowdimfa.services.monitoring.pages.MOST_AT_ONCE", 1)
    with web(tmp_path) as pages:
        host, _, port = pages.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as first:
            with pytest.raises((http.client.HTTPException, OSError)):
                answer(pages.address, "GET", "/healthz")
            first.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200 OK" in first.recv(1000)


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.0\r\nHost: "])
def test_a_client_that_sends_its_request_drop_by_drop_is_cut_off(
    begun: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowdimfa.services.monitoring.pages.REQUEST_SECONDS", 0.2)
    with web(tmp_path) as pages:
        host, _, port = pages.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=0.02) as dripping:
            dripping.sendall(begun)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    dripping.sendall(b"x")
                    assert dripping.recv(1) == b""
                    break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                raise AssertionError("it is still heard")
        monkeypatch.undo()
        assert answer(pages.address, "GET", "/healthz")[0] == 200


def test_an_application_that_says_no_length_has_one_on_head(tmp_path: Path) -> None:
    from lowdimfa.services.monitoring.pages import _with_head

    def application(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        return [b"one", b"two"]

    begun: list[Any] = []
    assert list(_with_head(application)({"REQUEST_METHOD": "HEAD"}, lambda *said: begun.extend(said))) == []
    assert begun == ["200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")]]


def test_what_is_being_answered_when_a_server_closes_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, closed, written = Event(), Event(), Event()

    class Body(list[bytes]):
        def close(self) -> None:  # called once it is written
            written.set()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        begun.set()
        closed.wait(60)
        start_response("200 OK", [])
        return Body([b"the end"])

    pages = Pages("127.0.0.1", 0, slow, what="a page", settings="none")
    close = pages._server.server_close
    monkeypatch.setattr(pages._server, "server_close", lambda: (close(), closed.set()))
    pages.start()
    connection = http.client.HTTPConnection("127.0.0.1", pages.port, timeout=60)
    try:
        connection.request("GET", "/")
        assert begun.wait(60)
        pages.close()
        assert written.is_set()
        assert connection.getresponse().read() == b"the end"
    finally:
        connection.close()
