"""A checkpoint's plain data is believed no more than its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.trainer.api import DecoupledTrainer

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": 2, "limit_samples": 128},
    "run": {"tensorboard": False, "timeline": False},
}


def without_updater(block: dict[str, Any]) -> None:
    del block["scalars"]["updater"]


def without_groups(block: dict[str, Any]) -> None:
    block["scalars"]["updater"]["groups"] = []


def with_words_for_numbers(block: dict[str, Any]) -> None:
    block["scalars"]["updater"]["parameters"] = "none"


def with_another_layer(block: dict[str, Any]) -> None:
    block["layers"] = ["elsewhere"]


@pytest.mark.parametrize(
    "damage", [without_updater, without_groups, with_words_for_numbers, with_another_layer]
)
def test_plain_data_that_fits_no_block_is_refused_with_its_file(
    damage: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run").fit()
    file = CheckpointStore(tmp_path / "run").load(None).path / "manifest.json"
    contents = json.loads(file.read_text("utf-8"))
    damage(contents["blocks"][0])
    file.write_text(json.dumps(contents), "utf-8")
    with pytest.raises(InputError, match=r"manifest\.json: found a state that block 0 can't take"):
        DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run", resume=True).fit()
