"""TensorBoard's event files, read back record by record."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from specifications import SMALL
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from lowdimfa.callback import Run
from lowdimfa.errors import StoppedError
from lowdimfa.services.callbacks.numbers import scalars
from lowdimfa.services.callbacks.tensorboard import TensorBoard
from lowdimfa.services.spec import load_specification
from lowdimfa.services.trainer.api import DecoupledTrainer

SPECIFICATION = SMALL | {"run": SMALL["run"] | {"timeline": False, "alignment_every": 6}}


def records(path: Path) -> Iterator[Any]:
    """Yield the events of one file, after checking length and checksums of each record."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        body = data[12 : 12 + length]
        assert len(body) == length
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc32c(body),)
        yield event_pb2.Event.FromString(body)
        data = data[16 + length :]


def shown(run_dir: Path) -> tuple[dict[str, dict[int, float]], list[Any]]:
    """Return each scalar's values by step, as TensorBoard shows them, and all events."""
    events = [event for path in sorted((run_dir / "tensorboard").iterdir()) for event in records(path)]
    found: dict[str, dict[int, float]] = {}
    begun = False
    for event in events:
        if event.HasField("session_log"):
            assert event.session_log.status == event_pb2.SessionLog.START
            for values in found.values() if begun else ():  # the first takes nothing back
                for step in [step for step in values if step >= event.step]:
                    del values[step]
            begun = True
        for value in event.summary.value:
            if value.HasField("simple_value"):
                values = found.setdefault(value.tag, {})
                assert event.step not in values, f"{value.tag} has step {event.step} twice"
                values[event.step] = value.simple_value
    return found, events


def run(run_dir: Path, stop_at: int = 0, **options: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def see(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "progress" and event["step"] == stop_at:
            trainer.stop()

    trainer = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=run_dir, on_event=see, **options)
    trainer.fit()
    return seen


def test_every_number_of_a_run_is_there_with_its_step_and_time(tmp_path: Path) -> None:
    seen = run(tmp_path / "run")
    found, events = shown(tmp_path / "run")
    assert set(found) == {
        "train/loss",
        "train/accuracy",
        "train/samples_per_second",
        "test/loss",
        "test/accuracy",
        "alignment/block_0_angle_degrees",
    }
    progress = [event for event in seen if event["event"] == "progress"]
    for key in ("loss", "accuracy", "samples_per_second"):
        assert found[f"train/{key}"] == pytest.approx({event["step"]: event[key] for event in progress})
    (evaluated,) = [event for event in seen if event["event"] == "evaluated"]
    assert found["test/accuracy"] == pytest.approx({12: evaluated["test_accuracy"]})
    assert set(found["alignment/block_0_angle_degrees"]) == {6, 12}
    times = [event.wall_time for event in events if any(v.tag == "train/loss" for v in event.summary.value)]
    assert times == [event["time"] for event in progress]


def test_the_specification_is_there_as_text(tmp_path: Path) -> None:
    run(tmp_path / "run")
    _, events = shown(tmp_path / "run")
    (text,) = [
        value
        for event in events
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    ]
    lines = text.tensor.string_val[0].decode().splitlines()
    assert all(line.startswith("    ") for line in lines)  # which Markdown shows as it is
    (tmp_path / "again.yaml").write_text("\n".join(line[4:] for line in lines))
    assert load_specification(tmp_path / "again.yaml") == load_specification(tmp_path / "run" / "spec.yaml")


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path / "run", stop_at=6)
    folder = tmp_path / "run" / "tensorboard"
    # A part that went on and was killed before its next checkpoint.
    show(tmp_path / "run", started(6), *(progress(step, -1.0) for step in (8, 10)))
    run(tmp_path / "run", resume=True)
    found, _ = shown(tmp_path / "run")
    assert list(found["train/loss"]) == [2, 4, 6, 8, 10, 12]
    assert min(found["train/loss"].values()) > 0
    run(tmp_path / "run", resume=True)  # at its end, where it is only evaluated again
    assert list(shown(tmp_path / "run")[0]["test/loss"]) == [12]
    assert len(list(folder.iterdir())) == 4


def show(path: Path, *events: dict[str, Any]) -> None:
    """Let it be told of these events and of the end."""
    board, view = TensorBoard(), Run({"a": 1}, path)
    for event in events:
        getattr(board, event["event"])(event, view)
    board.finished({}, view)


def started(step: int) -> dict[str, Any]:
    return {"event": "started", "time": 1.0, "step": step}


def progress(step: int, loss: float) -> dict[str, Any]:
    return {"event": "progress", "time": 1.0, "step": step, "loss": loss}


def recovered(step: int) -> dict[str, Any]:
    return {"event": "recovered", "time": 1.0, "step": step, "policy": "restart", "missed": {}}


def test_a_recovery_takes_back_what_came_after_its_step(tmp_path: Path) -> None:
    show(
        tmp_path,
        started(0),
        *(progress(step, 1.0) for step in (6, 8, 10)),
        recovered(6),
        *(progress(step, 2.0) for step in (8, 10, 12)),
        recovered(12),  # as after a rejoin: nothing is taken back
        progress(14, 3.0),
    )
    assert shown(tmp_path)[0]["train/loss"] == {6: 1.0, 8: 2.0, 10: 2.0, 12: 2.0, 14: 3.0}


def test_a_recovery_may_go_back_to_the_step_that_the_run_was_resumed_from(tmp_path: Path) -> None:
    show(tmp_path, started(0))
    show(tmp_path, started(4), progress(6, 1.0), recovered(4), progress(6, 4.0))
    found, events = shown(tmp_path)
    assert found["train/loss"] == {6: 4.0}
    assert [event.step for event in events if event.HasField("session_log")] == [0, 5, 5]


def test_a_recovery_may_go_back_further_than_the_step_that_the_run_was_resumed_from(tmp_path: Path) -> None:
    show(tmp_path, started(0), *(progress(step, 1.0) for step in (2, 4, 6, 8)))
    show(tmp_path, started(8), progress(10, 2.0), recovered(4), *(progress(step, 3.0) for step in (6, 8, 10)))
    assert shown(tmp_path)[0]["train/loss"] == {2: 1.0, 4: 1.0, 6: 3.0, 8: 3.0, 10: 3.0}


def test_it_can_be_left_out(tmp_path: Path) -> None:
    plain = SPECIFICATION | {"run": SPECIFICATION["run"] | {"tensorboard": False}}
    DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "run").fit()
    assert not (tmp_path / "run" / "tensorboard").exists()


def full_disk(_path: str) -> Any:
    return Path("/dev/full").open("wb")


@pytest.mark.parametrize("fault", ["a file is in the way", "the disk is full"])
def test_a_storage_that_fails_is_a_warning_and_nothing_more(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    if fault == "the disk is full":
        monkeypatch.setattr(record_writer, "open_file", full_disk)
    else:
        (tmp_path / "run" / "tensorboard").write_text("")
    seen = run(tmp_path / "run")
    assert seen[-1]["event"] == "finished"
    (warning,) = [event["message"] for event in seen if event["event"] == "warning"]
    assert "the callback TensorBoard failed" in warning and "not called any more" in warning
    assert ("No space left" in warning) == (fault == "the disk is full")


def test_what_is_not_finite_is_left_out() -> None:
    event = {"event": "progress", "time": 1.0, "step": 3, "loss": math.nan, "accuracy": None}
    assert list(scalars(event)) == []
    assert list(scalars({"event": "checkpoint", "time": 1.0, "step": 3})) == []
