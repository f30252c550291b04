"""What planning leaves of a GPU's memory: nothing, as the blocks that are to train have processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from lossy_engine import SPECIFICATION

from lowdimfa.services.run.profile import Bench, free_gpu
from lowdimfa.services.trainer.api import DecoupledTrainer


@pytest.mark.parametrize("balance", ["flops", "time"])
def test_memory_that_torch_keeps_is_given_back_once_nothing_of_the_benches_is_left(
    balance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: WeakSet[Any] = WeakSet()
    built: list[int] = []
    left: list[int] = []
    build = Bench.build

    def building(bench: Bench, blocks: Any) -> Any:
        learning, head = build(bench, blocks)
        there.update([*learning, head])
        built.append(len(there))
        return learning, head

    monkeypatch.setattr(Bench, "build", building)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(len(there)))
    sections = {
        "model": SPECIFICATION["model"] | {"balance": balance},
        "placement": {"threads_per_block": {1: 2}},
    }
    DecoupledTrainer(SPECIFICATION | sections, engine="local", run_dir=tmp_path / "run").plan()
    assert built and left == [0]


def test_a_gpu_that_nothing_was_computed_on_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("it would be initialised"))
    free_gpu()
