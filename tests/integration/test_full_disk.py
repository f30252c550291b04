"""What a run writes, on a file system that is really full."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from disks import SmallDisk, small_disk
from forked import forked
from specifications import SMALL

from lowdimfa.errors import DiskFullError, LowdimfaError, ResourceError, StorageError
from lowdimfa.services.cli.main import main
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.monitoring.targets import write_targets
from lowdimfa.services.monitoring.timeline import TimelineWriter
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.checkpoint import BlockState, CheckpointStore, export_state, write_block
from lowdimfa.services.run.disk import no_room
from lowdimfa.services.run.process_log import keep_output
from lowdimfa.services.spec import parse_specification, to_yaml
from lowdimfa.services.trainer import postmortem
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.run_dir import RunDir, postmortem_file, read_run


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("small") / "disk", "256k") as disk:
        yield disk


@pytest.fixture
def disk(mounted: SmallDisk) -> Iterator[SmallDisk]:
    yield mounted
    mounted.clear()


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content[-1:] in (b"", b"\n")
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("padding", [100, 1000, 7000])
def test_the_log_of_events_has_each_once_when_there_is_room_again(disk: SmallDisk, padding: int) -> None:
    seen: list[Event] = []
    path = disk.path / "events.jsonl"
    log = Journal(disk.path, seen.append)
    log.emit("started", step=0)
    for outage in range(3):
        disk.fill(left=outage)
        for step in range(10_000 // padding + 3):
            log.emit("progress", step=step, text="x" * padding)
            assert read(path) == seen[: len(read(path))]
        assert log.trouble is not None and str(path) in log.trouble and "No space left" in log.trouble
        disk.free()
        log.emit("checkpoint", step=outage)
        assert log.trouble is None and read(path) == seen
    log.close()
    assert read(path) == seen
    warnings = [event["message"] for event in seen if event["event"] == "warning"]
    assert len(warnings) == 1 and "events wait in memory" in warnings[0]  # of trouble that comes and goes


def test_what_the_memory_cannot_keep_is_given_up_with_a_note(disk: SmallDisk) -> None:
    path = disk.path / "events.jsonl"
    log = Journal(disk.path, limit=5_000)
    disk.fill()
    for step in range(200):
        log.emit("progress", step=step, text="x" * 100)
    disk.free()
    log.emit("finished")
    log.close()
    events = read(path)
    places = [at for at, event in enumerate(events) if "missing here" in event.get("message", "")]
    assert len(places) == 1 and events[-1]["event"] == "finished"
    before, after = events[: places[0]], events[places[0] + 1 : -1]
    missing = int(events[places[0]]["message"].split()[0])
    steps = [event["step"] for event in after]
    assert steps == list(range(steps[0], 200))
    assert len([event for event in before if event["event"] == "progress"]) + missing + len(steps) in (
        200,
        201,  # with the warning that there is no room
    )


def test_a_log_that_is_closed_without_room_is_whole_and_goes_on(disk: SmallDisk) -> None:
    path = disk.path / "events.jsonl"
    log = Journal(disk.path)
    log.emit("started", text="x" * 3000)
    disk.fill()
    for step in range(20):
        log.emit("progress", step=step, text="x" * 300)
    log.close()
    kept = read(path)
    log = Journal(disk.path)  # an open needs no room
    disk.free()
    log.emit("started")
    log.close()
    assert [*kept, read(path)[-1]] == read(path)
    steps = [event["step"] for event in kept if event["event"] == "progress"]
    assert steps == list(range(len(steps))) and len(steps) < 20


def test_a_timeline_waits_for_room(disk: SmallDisk) -> None:
    writer = TimelineWriter(disk.path / "timeline" / "block-0.jsonl")
    disk.fill()
    for step in range(300):
        writer.record("step", step, 0, 1.0, 2.0)
        if step % 100 == 99:
            writer.flush()
    disk.free()
    writer.record("step", 300, 0, 1.0, 2.0)
    writer.close()
    assert [span["step"] for span in read(writer.path)] == list(range(301))
    assert writer.dropped == 0
    disk.fill()
    lost = TimelineWriter(disk.path / "timeline" / "block-1.jsonl")
    for step in range(500):
        lost.record("step", step, 0, 1.0, 2.0)
    lost.close()
    assert lost.dropped == 500 - (len(read(lost.path)) if lost.path.exists() else 0)


def test_prints_and_tracebacks_end_no_process(disk: SmallDisk, tmp_path: Path) -> None:
    def talk() -> None:
        keep_output(disk.path / "logs" / "block-0.log")
        print("before")
        disk.fill()
        for _ in range(100):
            print("lost", "x" * 200)
            try:
                raise RuntimeError("no luck")
            except RuntimeError as error:
                traceback.print_exception(error)
        sys.stdout.write("lost without an end")
        sys.stdout.flush()
        disk.free()
        print("after")
        print("error", file=sys.stderr)

    assert forked(talk, tmp_path) == (0, "", "")
    lines = (disk.path / "logs" / "block-0.log").read_text().splitlines()
    assert lines[0] == "before"
    assert "after" in lines and lines[-1] == "error"
    assert sum("bytes are missing here: the disk was full" in line for line in lines) == 2  # output and error


def test_targets_are_not_worth_a_run(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    path = disk.path / "targets" / "run.json"
    write_targets(path, [{"address": "h:1", "job": "run", "role": "trainer"}])
    before = path.read_bytes()
    disk.fill()
    write_targets(path, [{"address": f"h:{k}", "job": "run", "role": "trainer"} for k in range(100)])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert "No space left" in caplog.text and str(path) in caplog.text


def test_what_describes_a_run_is_replaced_whole_or_not_at_all(disk: SmallDisk) -> None:
    specification = parse_specification(SMALL, "the test")
    with RunDir(disk.path / "run", resume=False) as run_dir:
        run_dir.describe(specification, {"blocks": []})
        run_dir.conclude("{}")
        before = sorted((path.name, path.read_bytes()) for path in run_dir.path.iterdir())
        disk.fill()
        run_dir.describe(specification, {"blocks": []})  # as a trainer that takes the place of a lost one
        for write in (
            lambda: run_dir.describe(specification, {"blocks": ["x" * 9000]}),
            lambda: run_dir.conclude("x" * 9000),
        ):
            with pytest.raises(DiskFullError, match="No space left") as caught:
                write()
            assert caught.value.setting == "run.storage" and str(run_dir.path) in caught.value.message
        assert "not kept" in run_dir.keep_traceback(RuntimeError("x" * 9000))
        (run_dir.path / "traceback.txt").unlink(missing_ok=True)
        assert sorted((path.name, path.read_bytes()) for path in run_dir.path.iterdir()) == before
    assert read_run(disk.path / "run") == specification


def test_a_run_without_room_for_its_directory_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_at(monkeypatch, 0, errno.ENOSPC)
    with (
        pytest.raises(DiskFullError, match="can't begin before there is room"),
        RunDir(tmp_path / "new", resume=False),
    ):
        pass


BLOCKS = {k: {f"model/layer{k}.weight": torch.full((1000,), float(k))} for k in range(3)}


def save(store: CheckpointStore, step: int, meta: dict[str, Any] | None = None) -> Path:
    attempt = store.begin(step)
    states = [BlockState(k, [f"layer{k}"], tensors, {}) for k, tensors in BLOCKS.items()]
    try:
        entries = [write_block(attempt, state) for state in states]
    except ResourceError:  # as the trainer does it, once all blocks have ended
        store.abandon()
        raise
    return store.commit(step, entries, meta or {})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_without_room_leaves_the_last_good_one_and_nothing_else(disk: SmallDisk) -> None:
    run_dir = disk.path / "run"
    store = CheckpointStore(run_dir, keep=1)
    save(store, 5)
    meta = {"notes": "x" * 9000}  # a manifest of three pages, so that it is what finds no room at times
    places = set()
    for left in itertools.count():
        disk.fill(left)
        try:
            save(store, 7, meta)
        except ResourceError as error:
            # As when it crosses from a block's process to the trainer's.
            crossed = pickle.loads(pickle.dumps(error))
            assert type(crossed) is DiskFullError and no_room(crossed)
            assert crossed.setting == "run.storage" and str(run_dir / "checkpoints") in crossed.message
            places.add(crossed.block)
            disk.free()
            assert names(run_dir / "checkpoints") == ["step-00000005"]
            assert len(export_state(store.load(None))) == 3
            continue
        break
    assert places >= {0, 1, 2, None}
    assert names(run_dir / "checkpoints") == ["step-00000007"]
    assert store.load(None).meta == meta


def refuse_at(monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> Callable[[], bool]:
    """Let the ``call``-th call that changes the disk fail; return whether one did."""
    counter = itertools.count()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == call:
                raise OSError(number, os.strerror(number))
            return function(*args, **kwargs)

        return failing

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: next(counter) > call


FULL, BROKEN = (errno.EDQUOT, DiskFullError), (errno.EIO, StorageError)


@pytest.mark.parametrize(
    ("number", "kind", "before", "step"),
    [(*FULL, [5], 7), (*BROKEN, [5], 5), (*FULL, [5, 6], 7), (*FULL, [5, 9], 7), (*BROKEN, [5, 9], 7)],
)
def test_whatever_the_disk_refuses_is_a_typed_error_and_costs_no_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[ResourceError],
    before: list[int],
    step: int,
) -> None:
    for call in itertools.count():
        run_dir = tmp_path / str(call)
        for earlier in before:
            save(CheckpointStore(run_dir, keep=9), earlier)
        store = CheckpointStore(run_dir, keep=1)
        with monkeypatch.context() as patched:
            refused = refuse_at(patched, call, number)
            try:
                save(store, step)
            except ResourceError as error:
                assert type(error) is kind and str(run_dir) in error.message
                assert no_room(error) == (number == errno.EDQUOT)
            else:
                if not refused():
                    assert call > 10
                    return
                assert store.list()[-1] == step  # a call that is allowed to fail
        assert all((path / "manifest.json").exists() for path in (run_dir / "checkpoints").iterdir())
        assert len(export_state(store.load(None))) == 3 and not store.newest_good().damaged
        assert store.list()[-1] in {*before, step}
        save(store, step)
        assert store.list() == [step] and len(names(run_dir / "checkpoints")) == 1


def test_leftovers_of_a_killed_trainer_make_room(disk: SmallDisk) -> None:
    store = CheckpointStore(disk.path / "run")
    save(store, 5)
    write_block(store.begin(6), BlockState(0, [], {"model/x": torch.zeros(5000)}, {}))
    disk.fill(left=1)
    save(store, 7)
    assert names(disk.path / "run" / "checkpoints") == ["step-00000007"]


def test_a_run_goes_on_over_an_outage_and_its_log_is_complete(disk: SmallDisk) -> None:
    seen: list[Event] = []

    def outage(event: Event) -> None:
        seen.append(event)
        if event["event"] == "progress" and event["step"] == 4:
            disk.fill()
        if event["event"] == "evaluated":
            disk.free()

    run_dir = disk.path / "run"
    specification = SMALL | {"run": SMALL["run"] | {"tensorboard": False}}
    specification["train"] = SMALL["train"] | {"log_every": 1}
    result = DecoupledTrainer(specification, engine="local", run_dir=run_dir, on_event=outage).fit()
    assert result.metrics["steps"] == 12
    assert read(run_dir / "events.jsonl") == json.loads(json.dumps(seen))
    assert seen[-1]["event"] == "finished" and (run_dir / "result.json").exists()


def test_a_result_that_cannot_be_kept_is_said_and_written_by_a_resumed_run(disk: SmallDisk) -> None:
    run_dir = disk.path / "run"

    def fill(event: Event) -> None:
        if event["event"] == "checkpoint":
            disk.fill()

    specification = SMALL | {"run": SMALL["run"] | {"tensorboard": False, "timeline": False}}
    with pytest.raises(DiskFullError, match="its result can't be kept"):
        DecoupledTrainer(specification, engine="local", run_dir=run_dir, on_event=fill).fit()
    disk.free()
    assert not (run_dir / "result.json").exists()
    DecoupledTrainer(specification, engine="local", run_dir=run_dir, resume=True).fit()
    assert json.loads((run_dir / "result.json").read_text())["steps"] == 12


@pytest.mark.parametrize("form", ["text", "json"])
def test_output_that_finds_no_room_ends_no_run(form: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "spec.yaml").write_text(to_yaml(parse_specification(SMALL, "the test")))
    words = ["train", str(tmp_path / "spec.yaml"), "--engine", "local", "--format", form]

    def command() -> None:
        sys.argv = ["lowdimfa", *words, "--run-dir", str(run_dir)]
        main()

    ended = forked(command, tmp_path, stdout=Path("/dev/full"))
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("lowdimfa: part of the output is lost") == 1
    assert read(run_dir / "events.jsonl")[-1]["event"] == "finished"


def test_checkpoints_without_room_are_events_and_only_the_last_one_is_needed(disk: SmallDisk) -> None:
    seen: list[Event] = []
    run_dir = disk.path / "a run"
    run = {"tensorboard": False, "timeline": False, "checkpoint_every": 2, "evaluate_every_epochs": 0}
    specification = SMALL | {"run": run}

    def outage(event: Event) -> None:
        seen.append(event)
        if (event["event"], event.get("step")) == ("checkpoint", 4):
            disk.fill()
        if (event["event"], event.get("step")) == ("checkpoint_failed", last):
            disk.free()

    last = 8
    DecoupledTrainer(specification, engine="local", run_dir=run_dir, on_event=outage).fit()
    steps = {
        kind: [event["step"] for event in seen if event["event"] == kind]
        for kind in ("checkpoint", "checkpoint_failed")
    }
    assert steps == {"checkpoint": [2, 4, 10, 12], "checkpoint_failed": [6, 8]}
    assert read(run_dir / "events.jsonl") == json.loads(json.dumps(seen))
    first, counted = [message for message in warnings(seen) if "checkpoint" in message]
    assert first.startswith("no checkpoint of step 6") and "make room" in first
    assert counted == "checkpoints are written again; 2 were not"

    def no_room_from_the_start(event: Event) -> None:
        seen.append(event)
        disk.fill()

    longer = specification | {"train": SMALL["train"] | {"steps": 18}}
    seen.clear()
    with pytest.raises(DiskFullError, match=r"step-00000018|step 18") as caught:
        DecoupledTrainer(
            longer, engine="local", run_dir=run_dir, resume=True, on_event=no_room_from_the_start
        ).fit()
    assert [event["step"] for event in seen if event["event"] == "checkpoint_failed"] == [14, 16, 18]
    assert CheckpointStore(run_dir).newest_good().damaged == {}
    assert names(run_dir / "checkpoints") == ["step-00000010", "step-00000012"]
    assert seen[-1]["event"] == "failed" and seen[-1]["code"] == "resources"
    assert seen[-1]["message"] == caught.value.message
    command = f"lowdimfa train SPEC --resume --run-dir '{run_dir}'"
    assert caught.value.message.endswith(f"make room, then go on with: {command}")
    assert sum("no checkpoint of step" in message for message in warnings(seen)) == 1
    assert "nor were 3 checkpoints before it written" in warnings(seen)


def test_last_words_without_room_leave_no_empty_file(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = postmortem_file(disk.path)
    file.write_text("of an earlier part of the run")
    workers = [
        SimpleNamespace(number=number, seat=Seat(number), name=f"block {number}") for number in range(2)
    ]
    group: Any = SimpleNamespace(
        liveness=1.0,
        workers=workers,
        ask=lambda method: [method] * 2,
        topology=SimpleNamespace(file_stem=str),
    )
    monkeypatch.setattr(postmortem, "answers", lambda calls, seconds: dict.fromkeys(range(2), "x" * 9000))
    disk.fill()
    postmortem.write_postmortem(disk.path, group, LowdimfaError("why"))
    assert {path.name for path in disk.path.iterdir()} == {".filler"}
    disk.free()
    postmortem.write_postmortem(disk.path, group, LowdimfaError("why"))
    assert "the run ends: why" in file.read_text()


def test_a_disk_that_takes_a_line_now_and_then_is_one_trouble(disk: SmallDisk) -> None:
    log = Journal(disk.path, (seen := []).append)
    for outage in range(10):
        disk.fill()
        for step in range(5):
            log.emit("progress", step=step, text="x" * 900)
        assert log.trouble
        disk.free()
        log.emit("checkpoint", step=outage)
        assert not log.trouble
    log.close()
    assert len(warnings(seen)) == 1


def warnings(events: list[Event]) -> list[str]:
    return [event["message"] for event in events if event["event"] == "warning"]
