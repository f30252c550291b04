"""What a trainer that replaces a lost one knows of the recoveries before it: they count as if they were its own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from lossy_engine import LossyEngine, drive, events, of

from lowdimfa.errors import BlockLostError, NotFiniteError, PeerError
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.trainer import recovery
from lowdimfa.services.trainer.run_dir import opened

LOST = BlockLostError("block 1 was lost", block=1)
NOT_FINITE = NotFiniteError("the loss is not finite", block=1, step=5)


class Lost(BaseException):
    """Ends a trainer without a word."""


def lose_trainer(run_dir: Path, number: int) -> None:
    with opened(Journal(run_dir)) as journal:
        journal.emit("recovering", lost="trainer", policy="restart", blocks=[], step=7, recovery=number)


def test_a_replaced_trainer_goes_on_counting(tmp_path: Path) -> None:
    engine = LossyEngine([("run_steps", 5, LOST), ("run_steps", 7, Lost())])
    with pytest.raises(Lost):
        drive(engine, tmp_path, on_failure="restart", max_recoveries=3)
    lose_trainer(tmp_path, 2)
    further = LossyEngine([("run_steps", step, LOST) for step in (8, 9)])
    further.saved = engine.saved
    with pytest.raises(PeerError, match=r"4 losses within 600 s"):
        drive(further, tmp_path, resume=True, replaced=True, on_failure="restart", max_recoveries=3)
    begun = [event for event in events(tmp_path) if event["event"] == "recovering"]
    assert [event["recovery"] for event in begun] == [1, 2, 3]


def test_what_was_not_finite_before_a_trainer_was_replaced_is_not_cured_again(tmp_path: Path) -> None:
    engine = LossyEngine([("run_steps", 5, NOT_FINITE), ("run_steps", 7, Lost())])
    with pytest.raises(Lost):
        drive(engine, tmp_path, on_failure="restart")
    lose_trainer(tmp_path, 2)
    further = LossyEngine([("run_steps", 8, NOT_FINITE)])
    further.saved = engine.saved
    with pytest.raises(NotFiniteError):
        drive(further, tmp_path, resume=True, replaced=True, on_failure="restart")
    assert len(of(events(tmp_path), "recovering")) == 2


def test_recoveries_of_another_clock_are_counted_by_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=lambda: 1000.0, monotonic=lambda: 50.0)
    monkeypatch.setattr(recovery, "time", clock)
    moments = [900.0, 990.0, 1003.0]  # the last by a machine whose clock is ahead
    lines = [json.dumps({"event": "recovering", "time": moment}) for moment in moments]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert recovery.history_of(Journal(tmp_path)).begun == (-50.0, 40.0, 50.0)
