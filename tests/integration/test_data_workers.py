"""What workers read and count of the data, each in its own part of the run, against the in-process trainer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import drawing
import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.data import ItemSplit
from lowdimfa.errors import HandshakeError
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket

STEPS = 8


def in_process(plain: dict[str, Any], run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    metrics = DecoupledTrainer(plain, engine="local", run_dir=run_dir).fit().metrics
    return export_state(CheckpointStore(run_dir).load(None)), metrics


@pytest.mark.parametrize(("replicas", "microbatches"), [(1, 1), (1, 4), (2, 4)])
def test_what_does_not_count_weighs_the_same_in_workers(
    replicas: int, microbatches: int, tmp_path: Path
) -> None:
    plain = specification(
        blocks=3,
        q_rule="readout",
        data={"factory": "drawing:padded"},
        train={"ignore_index": drawing.IGNORED, "microbatches": microbatches},
        placement={"replicas": replicas},
    )
    plain["model"] = {"factory": "drawing:tagger", "blocks": 3}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found, totals = fleet.model_state(), fleet.evaluate()
        steps = fleet.workers[-1].finished_steps()
    expected, metrics = in_process(plain, tmp_path / "local")
    if replicas == 1:
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert (totals.loss, totals.accuracy) == (metrics["test_loss"], metrics["test_accuracy"])
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert totals.loss == pytest.approx(metrics["test_loss"], rel=1e-4)
    targets = drawing.padded().test.targets(torch.arange(300))
    assert totals.counted == int((targets != drawing.IGNORED).sum())
    assert all(0 < step.counted < 64 * drawing.TOKENS for step in steps)


def test_a_block_that_is_first_and_head_reads_each_item_once(tmp_path: Path) -> None:
    train_section = {"microbatches": 4, "steps": 4, "scheduler": None}
    plain = specification(blocks=1, data={"factory": "drawing:turned"}, train=train_section)
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        reader = fleet.workers[0]._data
        assert reader is not None
        train, test = (
            cast(drawing.Turned, cast(ItemSplit, split).items)
            for split in (reader.dataset.train, reader.dataset.test)
        )
        train.read.clear(), test.read.clear()
        fleet.run(0, 4)
        fleet.evaluate()
        found = fleet.model_state()
    assert set(Counter(train.read).values()) == {1} and len(train.read) == 4 * 64
    assert set(Counter(test.read).values()) == {1} and len(test.read) == 300
    expected, _ = in_process(plain, tmp_path / "local")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_data_that_differ_between_processes_are_refused_with_what_may_be_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a factory takes files in the order of a listing, or numbers classes in that of a set."""
    made = drawing.padded
    calls: list[int] = []

    def shuffled() -> Any:
        calls.append(1)
        data = made()
        order = torch.randperm(300, generator=torch.Generator().manual_seed(len(calls)))
        return [tensor[order] for tensor in (data.train.input_data, data.train.target_data)] * 2  # type: ignore[attr-defined]

    monkeypatch.setattr(drawing, "shuffled", shuffled, raising=False)
    plain = specification(blocks=2, data={"factory": "drawing:shuffled"})
    plain["model"] = {"factory": "drawing:tagger", "blocks": 2}
    different = pytest.raises(HandshakeError, match=r"data fingerprint.*the order of a listing")
    with different, thread_fleet(plain, tmp_path / "threads"):
        pass


def test_each_part_that_the_head_reads_has_the_liveness_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a whole step at once: what takes the liveness is one item of many, not their sum."""
    begun: list[tuple[int, str]] = []
    begin = Observer.begin

    def noted(observer: Observer, kind: str, subject: str) -> None:
        if kind == "read":
            begun.append((id(observer), subject))
        begin(observer, kind, subject)

    monkeypatch.setattr(Observer, "begin", noted)
    plain = specification(blocks=2, data={"factory": "drawing:turned"}, train={"microbatches": 4})
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 1)
        head = id(fleet.workers[-1]._observer)
    assert [subject for own, subject in begun if own == head] == [str(Ticket(0, part)) for part in range(4)]
