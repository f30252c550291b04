"""A coordinator whose jobs' runs are in an object store: what it sees of them, and what it does while it sees nothing."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supervised import FAILED, World

from lowdimfa.errors import StorageError
from lowdimfa.services.coordinator.copies import LOOK_SECONDS, Copies
from lowdimfa.services.coordinator.intake import Intake
from lowdimfa.services.coordinator.jobs import Job, JobState
from lowdimfa.services.coordinator.runner import Condition, Look
from lowdimfa.services.run.objects import Objects, ObjectsError
from lowdimfa.services.trainer.run_dir import targets_file


class Clock:
    """The monotonic clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10_000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    made = World(tmp_path, storage=f"memory://{secrets.token_hex(4)}/runs")
    yield made
    made.store.close()


def put(job: Job, name: str, content: bytes) -> None:
    with Objects(job.run_dir).writing(name) as file:
        file.write(content)


def log(world: World, job_id: str, *events: dict[str, Any]) -> None:
    """Add events to those that the store has, as a trainer does."""
    job = world.job(job_id)
    before = Objects(job.run_dir).files().get("events.jsonl")
    old = Objects(job.run_dir).read("events.jsonl") if before else b""
    put(job, "events.jsonl", old + "".join(json.dumps(event) + "\n" for event in events).encode())


def later(world: World, clock: Clock, seconds: float = LOOK_SECONDS) -> None:
    clock.now += seconds
    world.rounds()


def running(world: World, clock: Clock, on_failure: str = "fail") -> str:
    job_id = world.submit(on_failure=on_failure, files={"mine.py": "x = 1"})
    world.rounds(2)
    log(world, job_id, {"event": "started", "steps": 10, "step": 0})
    later(world, clock)
    assert world.state(job_id) is JobState.running
    return job_id


def lose(world: World, job_id: str) -> None:
    world.cluster.trainers.pop(world.trainer(job_id), None)


class Away:
    """A store that does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._patch = monkeypatch.context()
        self._monkeypatch = self._patch.__enter__()
        self._monkeypatch.setattr(Objects, "files", self._files)
        self._monkeypatch.setattr(Objects, "writing", self._files)

    def _files(self, *_: object) -> None:
        self.asked += 1
        raise ObjectsError(
            121, f"no answer in {self.asked}.2 s", "memory://away"
        )  # clients say how long they tried

    def back(self) -> None:
        self._patch.__exit__(None, None, None)


def test_a_job_runs_from_an_address_alone(world: World, clock: Clock, tmp_path: Path) -> None:
    job_id = running(world, clock)
    job = world.job(job_id)
    request = world.cluster.requests[world.trainer(job_id)]
    assert request.run_dir == f"{world.storage}/{job_id}" == job.run_dir
    assert request.specification["run"]["storage"] == world.storage
    assert request.user_code.files == {"mine.py": "x = 1"} and not (tmp_path / "runs").exists()
    log(world, job_id, {"event": "progress", "step": 5, "steps": 10}, {"event": "finished"})
    world.rounds()
    assert world.job(job_id).step == 0  # it was looked at a moment ago
    world.cluster.trainers[world.trainer(job_id)] = Look(Condition.ended, {"event": "finished"})
    world.rounds()  # the end is read at once
    assert (world.job(job_id).step, world.state(job_id)) == (5, JobState.finished)
    assert [*(tmp_path / "copies").rglob("events.jsonl")] == []


def test_a_lost_trainer_is_noted_in_the_store_and_replaced(world: World, clock: Clock) -> None:
    job_id = running(world, clock, "restart")
    put(world.job(job_id), "spec.yaml", b"of the first attempt")
    lose(world, job_id)
    world.rounds()
    lines = Objects(world.job(job_id).run_dir).read("events.jsonl").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "recovering"]
    later(world, clock, 100.0)
    assert world.state(job_id) in (JobState.queued, JobState.starting)
    world.rounds(2)
    assert "spec.yaml" not in Objects(world.job(job_id).run_dir).files()
    log(world, job_id, {"event": "started", "steps": 10, "step": 0}, {"event": "recovered", "seconds": 1.0})
    later(world, clock)
    assert world.kinds(job_id)[:9] == [
        "queued", "starting", "started", "running", "recovering", "queued", "starting", "started", "running"
    ]  # fmt: skip
    later(world, clock)
    assert world.kinds(job_id)[-1] == "recovered" and world.kinds(job_id).count("warning") == 0


def test_while_the_store_is_away_jobs_run_on_and_an_end_waits_for_it(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running(world, clock)
    log(world, job_id, FAILED)
    away = Away(monkeypatch)
    later(world, clock)
    later(world, clock, 0.0)
    assert away.asked == 1 and world.state(job_id) is JobState.running  # it is left alone for a while
    assert "no answer" in world.store.events(job_id, 0, 1000)[-1].event["message"]
    world.ended(job_id, FAILED, logged=False)
    later(world, clock)
    assert world.state(job_id) is JobState.running and world.kinds(job_id)[-1] == "warning"
    away.back()
    later(world, clock, 2.0)
    assert world.state(job_id) is JobState.failed and world.kinds(job_id)[-2:] == ["failed", "failed"]

    other = running(world, clock)
    away = Away(monkeypatch)
    world.ended(other, FAILED, logged=False)
    world.rounds()
    later(world, clock, 11.0)  # more than the liveness: what its trainer returned has to do
    away.back()
    assert world.state(other) is JobState.failed and world.job(other).error is not None


def test_an_outage_is_told_once_however_long_it_lasts_and_told_again_the_next_time(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running(world, clock)
    for _ in range(2):
        away = Away(monkeypatch)
        for _ in range(20):
            later(world, clock)
        assert away.asked > 5
        away.back()
        later(world, clock, 2.0)
    assert world.kinds(job_id).count("warning") == 2
    away = Away(monkeypatch)
    world.ended(job_id, FAILED, logged=False)
    for _ in range(9):
        later(world, clock)
    away.back()
    assert world.kinds(job_id).count("warning") == 4  # that nothing is seen, and that the end waits


def test_a_recovery_is_noted_in_the_store_though_that_was_away_when_the_trainer_was_lost(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running(world, clock, "restart")
    away = Away(monkeypatch)
    lose(world, job_id)
    for _ in range(20):  # twice the liveness
        later(world, clock)
    assert world.state(job_id) is JobState.running and "recovering" not in world.kinds(job_id)
    away.back()
    later(world, clock, 2.0)
    lines = Objects(world.job(job_id).run_dir).read("events.jsonl").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "recovering"]
    later(world, clock, 100.0)
    world.rounds(2)
    log(world, job_id, {"event": "started", "steps": 10, "step": 0}, {"event": "recovered", "seconds": 1.0})
    later(world, clock)
    later(world, clock)
    assert [kind for kind in world.kinds(job_id) if kind in ("started", "recovering", "recovered")] == [
        "started", "recovering", "started", "recovered"
    ]  # fmt: skip
    told = [
        event["message"] for _, event in world.store.events(job_id, 0, 1000) if event["event"] == "warning"
    ]
    assert not any("became shorter" in message for message in told) and len(told) == 3


@pytest.mark.parametrize("gate", [0.0, 2.0])
def test_what_a_lost_trainer_told_the_store_alone_is_kept_and_counts(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, gate: float
) -> None:
    """The store comes back while it is still left alone, or later: the copy here has not all, and replaces nothing."""
    job_id = running(world, clock, "restart")
    job = world.job(job_id)
    away = Away(monkeypatch)
    lose(world, job_id)
    for _ in range(20):  # twice the liveness
        later(world, clock)
    away.back()
    log(world, job_id, {"event": "progress", "step": 7, "steps": 10}, {"event": "finished"})
    said = Objects(job.run_dir).read("events.jsonl")
    later(world, clock, gate)
    assert Objects(job.run_dir).read("events.jsonl") == said
    later(world, clock, 2.0)
    assert Objects(job.run_dir).read("events.jsonl") == said
    assert world.state(job_id) is JobState.finished and world.job(job_id).step == 7


def test_events_that_come_with_the_last_look_are_read_before_a_recovery_is_noted(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running(world, clock, "restart")
    monkeypatch.setattr(Intake, "is_complete", lambda self, job: True)  # as if that had been given up
    lose(world, job_id)
    log(world, job_id, {"event": "finished"})
    said = Objects(world.job(job_id).run_dir).read("events.jsonl")
    world.rounds(2)
    assert Objects(world.job(job_id).run_dir).read("events.jsonl") == said
    assert world.state(job_id) is JobState.finished


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=8))
def test_a_copy_is_what_the_store_has_however_it_grew(parts: list[tuple[bool, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        address = f"memory://{secrets.token_hex(4)}/run"
        job = Job("a", "a", "", JobState.running, "", 0.0, address, 1, 0)
        copies, content = Copies(Path(folder) / "copies", 12.0), b""
        for anew, part in parts:
            content = part if anew and len(part) < len(content) else content + part
            put(job, "events.jsonl", content)
            put(job, "logs/block-0.log", content)
            put(job, "targets.json", content[::-1])
            copies.refresh(job, now=True)
            copies.refresh(job, logs=True, now=True)
            there = copies.folder(job)
            for name in ("events.jsonl", "logs/block-0.log") if content else ():
                assert (there / name).read_bytes() == content


def test_events_do_not_wait_until_a_long_log_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a", "a", "", JobState.running, "", 0.0, f"memory://{secrets.token_hex(4)}/run", 1, 0)
    copies, reading, over, read = Copies(tmp_path / "copies", 12.0), Event(), Event(), Objects.read

    def held(objects: Objects, name: str, *part: int, **start: int) -> bytes:
        if name.startswith("logs/"):
            reading.set()
            assert over.wait(60)
        return read(objects, name, *part, **start)

    put(job, "logs/block-0.log", b"a line\n")
    put(job, "events.jsonl", b"{}\n")
    monkeypatch.setattr(Objects, "read", held)
    logs = Thread(target=copies.refresh, args=(job,), kwargs={"logs": True}, daemon=True)
    events = Thread(target=copies.refresh, args=(job,), daemon=True)
    logs.start()
    assert reading.wait(60)
    events.start()
    events.join(5)
    alive = events.is_alive()
    over.set()
    logs.join()
    events.join()
    assert not alive


def test_nobody_waits_for_long_until_a_log_is_here_for_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("a", "a", "", JobState.running, "", 0.0, f"memory://{secrets.token_hex(4)}/run", 1, 0)
    copies, fetching, over, refused = Copies(tmp_path / "copies", 1.2), Event(), Event(), Event()

    def held(self: Copies, job: Job, logs: bool) -> None:
        fetching.set()
        assert over.wait(60)

    def wait() -> None:
        with pytest.raises(StorageError, match="for somebody else"):
            copies.refresh(job, logs=True)
        refused.set()

    monkeypatch.setattr(Copies, "_fetch", held)
    first = Thread(target=copies.refresh, args=(job,), kwargs={"logs": True}, daemon=True)
    second = Thread(target=wait, daemon=True)
    first.start()
    assert fetching.wait(60)
    second.start()
    in_time = refused.wait(30)
    over.set()
    first.join()
    assert in_time
    copies.refresh(job, logs=True, now=True)  # the way is free again


def test_a_run_in_a_folder_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a", "a", "", JobState.running, "", 0.0, str(tmp_path / "runs" / "a"), 1, 0)
    copies, away = Copies(tmp_path / "copies", 12.0), Away(monkeypatch)
    copies.refresh(job, now=True)
    assert copies.folder(job) == Path(job.run_dir) and copies.targets(job) == targets_file(job.run_dir)
    assert away.asked == 0
    apart = Job("b", "b", "", JobState.running, "", 0.0, "memory://x/b", 1, 0)
    with pytest.raises(StorageError, match="no answer"):
        copies.refresh(apart)
    away.back()
