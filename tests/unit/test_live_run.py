"""``train --live``: the page's Stop is Ctrl-C, the run's token alone opens it, and it reads each event once."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from live_source import Browser

from lowdimfa.services.cli.live import LAST_LOOK_SECONDS, MOST_UNREAD, LiveRun, RunJob
from lowdimfa.services.monitoring.exporter import start_exporter
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.monitoring.live import block_times
from lowdimfa.services.monitoring.live.block_times import (
    MOST_MISSED,
    WINDOW_SECONDS,
    BlockTime,
    BlockTimes,
    Part,
)
from lowdimfa.services.monitoring.live.source import Refusal, Visitor
from lowdimfa.services.monitoring.live.texts import block_row
from lowdimfa.services.monitoring.live.watching import Watching
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.monitoring.targets import write_targets
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.run_dir import targets_file
from lowdimfa.services.trainer.signals import Stopping, graceful_signals

SPECIFICATION = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": 10},
}


def trainer_of(run_dir: Path | str, resume: bool = True) -> DecoupledTrainer:
    specification = parse_specification(SPECIFICATION, "the test's")
    request = SimpleNamespace(run_dir=str(run_dir), resume=resume)
    return cast(DecoupledTrainer, SimpleNamespace(specification=specification, request=request))


def job(run_dir: Path, stop: Any = lambda: None) -> RunJob:
    return RunJob(trainer_of(run_dir), Stopping(stop, 60.0))


def progress(step: int) -> dict[str, Any]:
    return {"event": "progress", "time": 0.0, "step": step, "steps": 9, "loss": 1.0}


def test_the_runs_token_alone_opens_its_page(tmp_path: Path) -> None:
    run = job(tmp_path / "<b>run")
    browser = Browser(run)
    assert browser.get("/jobs/run").status == 303
    assert browser.log_in("x" + run.token).status == 401
    assert browser.log_in(run.token).status == 303
    assert browser.get("/").headers["Location"] == "/jobs/run"
    page = browser.get("/jobs/run")
    assert page.status == 200 and "&lt;b&gt;run" in page.text and run.token not in page.text
    assert browser.get("/jobs/other").status == 404
    with pytest.raises(Refusal) as caught:
        run.look(Visitor("", ""), "run", 0)
    assert caught.value.status is HTTPStatus.UNAUTHORIZED


def test_a_page_reads_each_event_once_and_those_of_an_earlier_part_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.emit("progress", step=1, steps=9, loss=3.0)
    journal.close()
    run = job(tmp_path)
    run.tell(progress(2))
    first = run.look(run.visitor, "run", 0)
    assert [event["step"] for event in first.events] == [1, 2]
    assert run.look(run.visitor, "run", 0).events == first.events  # its answer was lost on the way
    assert run.tell(progress(3)) == 3
    assert [event["step"] for event in run.look(run.visitor, "run", first.position).events] == [3]
    assert run.tell(progress(4)) == 2


def test_a_run_at_an_address_has_its_logs_and_no_events_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = work_dir("s3://bucket/run")
    (folder / "logs").mkdir()
    (folder / "logs" / "trainer.log").write_text("a line")
    journal = Journal(folder)
    journal.open()
    journal.emit("progress", step=1, steps=9, loss=3.0)
    journal.close()
    for resume in (False, True):
        run = RunJob(trainer_of("s3://bucket/run", resume), Stopping(lambda: None, 60.0))
        look = run.look(run.visitor, "run", 0)
        assert run.logs(run.visitor, "run") == {"trainer": "a line"} and len(look.events) == resume
        assert look.targets == targets_file("s3://bucket/run") and look.job["name"] == "run"


def test_what_nobody_reads_becomes_curves(tmp_path: Path) -> None:
    live = LiveRun()
    live.tell(progress(0))  # before the page is up
    with live.served(trainer_of(tmp_path), Stopping(lambda: None, 60.0)):
        address, token = live.address.split("#")
        assert address.startswith("http://127.0.0.1:") and len(token) > 30
        for step in range(1, MOST_UNREAD + 2):
            live.tell(progress(step))
        assert live._job is not None
        assert [
            event["step"] for event in live._job.look(live._job.visitor, "run", MOST_UNREAD + 1).events
        ] == []


def test_stop_on_the_page_is_the_first_signal_and_stop_at_once_the_second(tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt), graceful_signals(lambda: asked.append("stop"), 60.0) as stopping:
        run = RunJob(trainer_of(tmp_path), stopping)
        browser = Browser(run)
        browser.log_in(run.token)
        for _ in range(2):  # a second graceful request hastens nothing
            assert browser.post("/jobs/run/stop", {"mode": "graceful"}).status == 303
        assert asked == ["stop"] and run.look(run.visitor, "run", 0).job["state"] == "stopping"
        assert run.look(run.visitor, "run", 0).actions == ("now",)
        thread = threading.Thread(target=browser.post, args=("/jobs/run/stop", {"mode": "now"}))
        thread.start()
        threading.Event().wait(30)
    thread.join()
    assert browser.post("/jobs/run/resume").status == 409


def test_a_page_that_is_open_hears_of_the_end(tmp_path: Path) -> None:
    run = job(tmp_path)
    run.end()  # nobody looks: nobody is waited for
    open_page = job(tmp_path)
    browser = Visitor(open_page.visitor.authorization, "127.0.0.1")
    open_page.look(browser, "run", 0)
    ending = threading.Thread(target=open_page.end)
    ending.start()
    while not open_page.look(browser, "run", 0).over:
        pass
    ending.join(LAST_LOOK_SECONDS)
    assert not ending.is_alive() and open_page.look(open_page.visitor, "run", 0).actions == ()
    with pytest.raises(Refusal, match="over"):
        open_page.stop(open_page.visitor, "run", now=False)


def test_nothing_of_a_job_that_is_over_is_shown_as_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockTimes, "shares", lambda times: [BlockTime("block 0", [Part("forward", 0.5)])])
    run = job(tmp_path)
    watching = Watching(run)
    assert [row["name"] for row in watching.news(run.visitor, "run", None)["block_times"]] == ["block 0"]
    run.end()
    assert watching.news(run.visitor, "run", None)["block_times"] == []


def test_shares_of_blocks_come_from_their_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = BlockMetrics("run", "1")
    exporter, port = start_exporter(metrics.registry, "127.0.0.1")
    nobody = {"address": "127.0.0.1:9", "job": "run", "role": "block"}
    times = BlockTimes(tmp_path / "targets.json")
    times._next = float("inf")  # looks are the test's own
    try:
        write_targets(
            tmp_path / "targets.json",
            [{"address": f"127.0.0.1:{port}", "job": "run", "role": "head"}, nobody],
        )
        times._look()
        metrics._busy["forward"].inc(300.0)
        metrics._waiting["error"].inc(100.0)
        times._look()
        times._next = float("inf")
        (block,) = times.shares()
        times._next = time.monotonic() - WINDOW_SECONDS  # nobody has asked since
        monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
        assert times.shares() == []
        monkeypatch.undo()
        for _ in range(2):
            times._look()
    finally:
        exporter.close()
    shown = []
    for _ in range(MOST_MISSED + 2):
        times._next = float("inf")
        shown.append(len(times.shares()))
        times._look()
    assert shown == [1] * (MOST_MISSED + 1) + [0]
    assert block.name == "block 1" and block.busy == pytest.approx(0.75)
    assert block_row(block)["text"] == "75% busy, 25% waiting, most for errors"
    line = 'lowdimfa_block_busy_seconds_total{block="1",replica="0",kind="forward"}'
    hostile = "".join(f"{line} {value}\n" for value in ("NaN", "+Inf", "-Inf", "2.0"))
    counter = "# TYPE lowdimfa_block_busy_seconds_total counter\n"
    assert [value for *_, value in block_times._samples(counter + hostile)] == [2.0]
    for text in ("", "{}", '[{"targets": 3}]', '[{"labels": {}, "targets": ["x y:z", "127.0.0.1:1"]}]'):
        (tmp_path / "targets.json").write_text(text)
        times._look()


@pytest.mark.parametrize("at_once", [b"HTTP/1.0 200 ", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_process_that_never_comes_to_an_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, at_once: bytes
) -> None:
    monkeypatch.setattr(block_times, "PATIENCE", 0.5)
    over, found = threading.Event(), []

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection, suppress(OSError):
            connection.sendall(at_once)
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        dripping = threading.Thread(target=drip, args=(server,))
        reading = threading.Thread(target=lambda: found.append(block_times._read(address)))
        dripping.start()
        reading.start()
        reading.join(10)
        in_time = not reading.is_alive()
        over.set()
        for thread in (dripping, reading):
            thread.join()
    assert in_time and found == [{}]
