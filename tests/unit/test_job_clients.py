"""The client of the job service where no service is, and the lines of a job's processes."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from lowdimfa.errors import PeerError, StoppedError
from lowdimfa.services.cli import jobs as commands
from lowdimfa.services.cli.options import Format
from lowdimfa.services.coordinator import client as module
from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.coordinator.logs import read_logs
from lowdimfa.services.coordinator.unlinked import open_file


class Unavailable(grpc.RpcError):
    """What a call raises that finds nobody."""

    def code(self) -> Any:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "refused"

    def trailing_metadata(self) -> tuple[()]:
        return ()


CALLS: dict[str, Any] = {
    "jobs": lambda client: list(client.jobs()),
    "status": lambda client: client.get("a"),
    "stop": lambda client: client.stop("a", now=False),
    "resume": lambda client: client.resume("a"),
    "submit": lambda client: client.submit("a", "", {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_where_nobody_listens_that_is_said_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.3)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # without listening
        with CoordinatorClient(Connection(f"127.0.0.1:{held.getsockname()[1]}", liveness=300.0)) as client:
            began = time.monotonic()
            with pytest.raises(PeerError, match="can't be reached"):
                CALLS[name](client)
    assert time.monotonic() - began < 60  # far below the liveness, on a machine however busy


def test_a_service_that_has_answered_is_waited_for_as_long_as_it_may_be_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    answers: list[Any] = ["first", *[Unavailable()] * 5, "second"]

    def call(request: Any, **options: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with CoordinatorClient(Connection("127.0.0.1:1", liveness=60.0)) as client:
        assert client._call(call, None) == "first"
        assert client._call(call, None) == "second"
    answers[:] = [Unavailable(), "never"]
    with (
        CoordinatorClient(Connection("127.0.0.1:1", liveness=60.0)) as client,
        pytest.raises(PeerError, match="refused"),
    ):
        client._call(call, None)


def lines(run_dir: Path, *sources: str) -> list[str]:
    async def read() -> list[str]:
        found = read_logs(run_dir, sources, 0, lambda: False)
        return [f"{line.source} {line.text}" async for line in found]

    return asyncio.run(read())


def test_every_process_of_a_job_is_in_its_logs_in_order(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    names = ["trainer", "block-0", "block-0-replica-1", "block-0-replica-10", "block-2", "block-10"]
    for name in [*reversed(names), "notes", "block-x", "block-1-replica-", "..", "trainer-2"]:
        (tmp_path / "logs" / f"{name}.log").write_text("written\n")
    assert lines(tmp_path) == [f"{name} written" for name in names]
    assert lines(tmp_path, "block-0-replica-1") == ["block-0-replica-1 written"]


def test_a_log_that_leads_elsewhere_or_never_ends_is_not_read(tmp_path: Path) -> None:
    """The job's own code can put anything there, and the coordinator may read more than it."""
    run_dir, secret = tmp_path / "run", tmp_path / "secret" / "trainer.log"
    for folder in (run_dir / "logs", secret.parent, tmp_path / "other"):
        folder.mkdir(parents=True)
    secret.write_text("the key\n")
    (run_dir / "logs" / "trainer.log").write_text("written\n")
    (run_dir / "logs" / "block-0.log").symlink_to(secret)
    os.mkfifo(run_dir / "logs" / "block-1.log")
    (run_dir / "logs" / "block-2.log").mkdir()
    assert lines(run_dir) == ["trainer written"]
    for name in ("block-0.log", "block-1.log", "block-2.log"):  # put there after it was looked at
        with pytest.raises(OSError, match=name):
            open_file(run_dir, "logs", name)
    (tmp_path / "other" / "logs").symlink_to(secret.parent)
    assert lines(tmp_path / "other") == []


def test_a_storage_that_hangs_holds_up_no_other_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    threads: set[int] = set()

    def noted(call: Any) -> Any:
        def work(*given: Any, **named: Any) -> Any:
            threads.add(threading.get_ident())
            return call(*given, **named)

        return work

    (tmp_path / "logs" / "trainer.log").write_text("written\n")
    for name in ("open", "scandir"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    assert lines(tmp_path) == ["trainer written"]
    assert threads and threading.get_ident() not in threads  # in which the loop runs, and all calls with it


def test_a_job_stopped_in_the_queue_is_not_said_to_have_ended_as_its_last_attempt_did() -> None:
    class Service:
        """Has one job, which failed, was resumed, and was stopped before there was room."""

        def watch(self, job: str, after: int) -> list[dict[str, Any]]:
            states = [
                {"event": "state", "state": name, "detail": "", "time": 1.0} for name in ("queued", "stopped")
            ]
            message, setting = "two losses were too many", "run.max_recoveries"
            return [{"event": "failed", "code": "resources", "message": message, "setting": setting}, *states]

        def get(self, job: str) -> dict[str, Any]:
            return {"state": "stopped", "error": None}

    service: Any = Service()
    with pytest.raises(StoppedError) as caught:
        commands._watch(service, "a", 0, Format.text)
    assert caught.value.message == "job a was stopped; 'lowdimfa resume a' goes on"
