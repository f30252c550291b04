"""What the log of a run tells whoever replaces a lost trainer, and what the request of the replacement is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.run.user_code import UserCode
from services.trainer.budget import recoveries_in
from services.trainer.events import Event, EventLog, events_in
from services.trainer.execute import RunRequest


def written(folder: Path, *events: dict[str, Any]) -> Path:
    log = folder / "events.jsonl"
    with log.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return log


def of(kind: str, time: float = 0.0) -> dict[str, Any]:
    return {"event": kind, "time": time}


def test_recoveries_are_counted_since_a_person_last_resumed_the_run(tmp_path: Path) -> None:
    assert recoveries_in(tmp_path / "none") == []
    log = written(tmp_path, of("started"), of("recovering", 1), of("started"), of("recovered"))
    written(tmp_path, of("recovering", 2), of("recovered"), of("progress"))
    assert recoveries_in(log) == [1, 2]
    written(tmp_path, of("failed"), of("recovering", 3), of("started"))  # replaced after the cluster was lost
    assert recoveries_in(log) == [1, 2, 3]
    written(tmp_path, of("failed"))
    assert recoveries_in(log) == [1, 2, 3]
    written(tmp_path, of("started"))
    assert recoveries_in(log) == []
    written(tmp_path, of("recovering", 4))
    assert recoveries_in(log) == [4]


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    log = written(tmp_path, of("started"))
    with log.open("ab") as file:
        file.write(b'\n[1]\n{"event": "recovering", "ti\n\xff"recovering"\n7\n')
    written(tmp_path, of("recovering", 5) | {"reason": '"started"'})
    assert [event["event"] for event in events_in(log)] == ["started", "recovering"]
    assert recoveries_in(log) == [5]


def test_a_line_that_a_killed_trainer_left_without_its_end_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n{"event": "progress", "st')
    for _ in range(2):
        log = EventLog(path)
        log.emit("recovering")
        log.close()
    assert [event["event"] for event in events_in(path)] == ["started", "recovering", "recovering"]


def test_the_first_started_of_a_replacement_is_followed_by_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.events.time.time", lambda: 104.5)
    told: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", told.append, lost_at=100.0)
    log.emit("warning", message="x")
    log.emit("started", step=40)
    log.emit("started", step=50)
    log.close()
    assert [event["event"] for event in told] == ["warning", "started", "recovered", "started"]
    recovered = {"policy": "restart", "blocks": [], "step": 40, "missed": {}, "seconds": 4.5}
    assert told[2] == {"event": "recovered", "time": 104.5} | recovered
    assert list(events_in(tmp_path / "events.jsonl")) == told


@pytest.mark.parametrize("complete", [True, False])
def test_a_further_attempt_goes_on_from_a_complete_checkpoint_or_begins_anew(
    tmp_path: Path, complete: bool
) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (tmp_path / "spec.yaml").write_text("")
    if complete:
        (checkpoint / "manifest.json").write_text("{}")
    again = RunRequest({}, str(tmp_path), "ray", not complete, UserCode()).again(7.0)
    assert (again.resume, again.lost_at) == (complete, 7.0)
    assert (tmp_path / "spec.yaml").exists() == complete
    assert again == RunRequest({}, str(tmp_path), "ray", complete, UserCode(), 7.0)
