"""Workers that have memory for their own layers alone: the same bits as where every process holds the network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa import sparse
from lowdimfa.services.run import in_turn, large

STEPS = 6


@pytest.fixture(autouse=True)
def no_process_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every network for a large one."""
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(sparse, "SMALLEST", 64)
    monkeypatch.setattr(in_turn, "PIECE", 0)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("q_rule", ["probed", "readout"])
def test_same_bits_as_where_every_process_holds_the_network(model: str, q_rule: str, tmp_path: Path) -> None:
    plain = specification(model, 3, q_rule)
    plain["model"]["args"] = {**plain["model"]["args"]} | ({"dropout": 0.0} if model == "cnn" else {})
    found = []
    for whole in (True, False):
        with thread_fleet(plain, tmp_path / str(whole), kind=partial(ThreadFleet, whole=whole)) as fleet:
            before = fleet.model_state()
            fleet.run(0, STEPS)
            found.append((before, fleet.model_state()))
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_job_has_shapes_and_no_weights(tmp_path: Path) -> None:
    with thread_fleet(
        specification("transformer", 3), tmp_path, connect=False, kind=partial(ThreadFleet, whole=False)
    ) as fleet:
        for worker in fleet.workers:
            assert worker.job.shapes is not None and worker.job.share is not None
            assert not any(list(block.build().parameters()) for block in worker.job.shapes.blocks)
            others = [block for block in worker.job.network().blocks if block.index != worker.job.index]
            assert not any(list(block.build().parameters()) for block in others)
