"""Layers with memory of their own for what they put out: the bits of the same layers with fresh memory each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet
from torch import Tensor, nn

from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 6
WIDTH = 24


class Reused(nn.Module):
    """Puts out the same memory each time, where nothing before it learns: in plain PyTorch nobody notices."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad:
            return inputs
        if self.memory.shape != inputs.shape:
            self.memory = torch.empty_like(inputs)
        return self.memory.copy_(inputs)


def network(reused: bool) -> nn.Module:
    """Return four blocks, of which the second one ends with a layer that reuses its memory, or not."""
    torch.manual_seed(0)
    frozen = nn.Linear(WIDTH, WIDTH), Reused() if reused else nn.Identity()
    middle = nn.ReLU(), *frozen, nn.Linear(WIDTH, WIDTH), nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *middle, nn.Linear(WIDTH, 10))


def plain(reused: bool, **sections: Any) -> dict[str, Any]:
    specified = specification("mlp", 4, "probed", **sections)
    specified["model"] = {
        "factory": "test_own_memory:network",
        "args": {"reused": reused},
        "blocks": 4,
        "frozen": ["3.*"],
    }
    return specified


def in_process(specified: dict[str, Any], run_dir: Path) -> dict[str, Tensor]:
    DecoupledTrainer(specified, engine="local", run_dir=run_dir).fit()
    return export_state(CheckpointStore(run_dir).load(None))


def test_a_probe_leaves_the_clean_outputs_of_its_blocks(tmp_path: Path) -> None:
    fresh, reused = (in_process(plain(each), tmp_path / str(each)) for each in (False, True))
    assert [name for name, value in fresh.items() if not torch.equal(reused[name], value)] == []


@pytest.mark.parametrize("transport", ["grpc", "torch"])
def test_blocks_in_a_pipeline_get_what_was_sent(transport: str, tmp_path: Path) -> None:
    found = []
    for reused in (False, True):
        specified = plain(reused, placement={"transport": transport})
        with thread_fleet(specified, tmp_path / str(reused)) as fleet:
            fleet.run(0, STEPS)
            states = [worker.stage.state().tensors for worker in fleet.workers]
            found.append({name: value.clone() for state in states for name, value in state.items()})
    fresh, reused_ones = found
    assert [name for name, value in fresh.items() if not torch.equal(reused_ones[name], value)] == []
