"""Text with masks and positions beside it: the same bits in threads as in process, and padding teaches nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_fleet import thread_fleet
from torch import Tensor, nn

from lowdimfa.data.preparing import Recipe, prepare
from lowdimfa.data.token_files import Manifest
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS, WIDTH, VOCABULARY, CONTEXT = 6, 16, 270, 8


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.tokens(input_ids) + self.positions(position_ids)


class Mean(nn.Module):
    """Adds to each token a map of the mean over those of its document, as far as the mask has it."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        mean = (hidden_states * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return hidden_states + self.map(mean).tanh()


def model() -> nn.Sequential:
    return nn.Sequential(Embedding(), Mean(), Mean(), nn.Linear(WIDTH, VOCABULARY))


def hugging_face() -> tuple[Any, Any]:
    """Return two data sets with columns, each row with its mask and labels."""
    from datasets import Dataset  # takes seconds

    rows = torch.arange(40 * CONTEXT).view(40, CONTEXT) % VOCABULARY
    mask = (torch.arange(CONTEXT) < 5).long().expand(40, -1)
    labels = torch.where(mask > 0, rows.roll(-1, 1), -100)
    positions = torch.arange(CONTEXT).expand(40, -1)
    columns = {"input_ids": rows, "attention_mask": mask, "position_ids": positions, "labels": labels}
    whole = Dataset.from_dict({name: column.tolist() for name, column in columns.items()})
    formatted = whole.with_format("torch")
    return formatted.select(range(30)), formatted.select(range(30, 40))


def specification(data: dict[str, Any], blocks: int = 2) -> dict[str, Any]:
    return {
        "model": {"factory": f"{__name__}:model", "blocks": blocks},
        "data": data | {"last_batch": "keep"},
        "train": {"steps": STEPS, "batch_size": 6, "microbatches": 2},
        "run": {"liveness_seconds": 30.0, "evaluate_every_epochs": 0, "tensorboard": False},
    }


def token_files(tmp_path: Path) -> dict[str, Any]:
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(f"{number}: to be or not " * (1 + number % 3))
    recipe = Recipe([str(tmp_path)], vocabulary=VOCABULARY, validation=0.3)
    prepare(recipe, tmp_path / "tokens")
    args = {"path": str(tmp_path / "tokens"), "context": CONTEXT, "pack": False, "position_ids": True}
    return {"factory": "lowdimfa.data:tokens", "args": args}


def in_process(plain: dict[str, Any], run_dir: Path) -> dict[str, Tensor]:
    DecoupledTrainer(plain, engine="local", run_dir=run_dir).fit()
    return export_state(CheckpointStore(run_dir).load(None))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("kind", "blocks"), [("tokens", 2), ("tokens", 4), ("datasets", 2)])
def test_masks_reach_every_block_and_give_the_same_bits(kind: str, blocks: int, tmp_path: Path) -> None:
    data = token_files(tmp_path) if kind == "tokens" else {"factory": f"{__name__}:hugging_face"}
    plain = specification(data, blocks)
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert same(found, in_process(plain, tmp_path / "local"))


def test_what_fills_up_a_sample_teaches_nothing(tmp_path: Path) -> None:
    plain = specification(token_files(tmp_path))
    expected = in_process(plain, tmp_path / "one")
    folder = tmp_path / "tokens"
    replace(Manifest.read(folder), pad=77).write(folder)
    assert same(in_process(plain, tmp_path / "other"), expected)
