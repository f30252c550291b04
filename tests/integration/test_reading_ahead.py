"""Data that worker processes read ahead: the bits of a run without them, and what is said when one fails or ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from lowdimfa.errors import LowdimfaError, ResourceError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8


def plain(workers: int, **sections: Any) -> dict[str, Any]:
    data = {"factory": "drawing:turned", "workers": workers, "prefetch": 1}
    run = {"evaluate_every_epochs": 1, "checkpoint_every": 3}
    sections["train"] = {"steps": STEPS, "scheduler": None, "microbatches": 4} | sections.get("train", {})
    return specification(blocks=2, data=data, run=run, **sections)


def trained(workers: int, run_dir: Path) -> tuple[dict[str, Tensor], float]:
    metrics = DecoupledTrainer(plain(workers), engine="local", run_dir=run_dir).fit().metrics
    return export_state(CheckpointStore(run_dir).load(None)), metrics["test_loss"]


def test_a_run_gives_the_same_bits_with_workers_on_every_engine_and_leaves_none(tmp_path: Path) -> None:
    """Samples draw random numbers, evaluations come between, and a replica reads its share."""
    state, loss = trained(0, tmp_path / "none")
    ahead, ahead_loss = trained(2, tmp_path / "ahead")
    assert ahead_loss == loss and all(torch.equal(ahead[name], value) for name, value in state.items())
    for replicas in (1, 2):
        options = plain(1, placement={"replicas": {0: replicas}})
        with thread_fleet(options, tmp_path / f"threads-{replicas}") as fleet:
            fleet.run(0, 3)
            fleet.evaluate()
            fleet.run(3, STEPS)
            found, found_loss = fleet.model_state(), fleet.evaluate().loss
        if replicas == 1:
            assert found_loss == loss and all(
                torch.equal(found[name], value) for name, value in state.items()
            )
        torch.testing.assert_close(found, state, rtol=1e-3, atol=1e-5)
    assert not multiprocessing.active_children()


@pytest.mark.xdist_group("ray")
def test_workers_of_actors_give_the_same_bits_and_end_with_them(cluster: None, tmp_path: Path) -> None:
    options = plain(1)
    state, _ = trained(0, tmp_path / "none")
    folder = Path(drawing.__file__).parent
    DecoupledTrainer(options, run_dir=tmp_path / "ray", user_code=folder).fit()
    found = export_state(CheckpointStore(tmp_path / "ray").load(None))
    assert all(torch.equal(found[name], value) for name, value in state.items())


class Bad(TorchDataset[tuple[Tensor, int]]):
    """Items of which one fails, or ends the process that reads it."""

    def __init__(self, samples: int, index: int, deadly: bool) -> None:
        self.samples, self.index, self.deadly, self.home = samples, index, deadly, os.getpid()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.index and os.getpid() != self.home:
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("a torn picture")
        return torch.full((4,), float(index)), index % 2


def fit_bad(bad: Bad, run_dir: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    overrides = {"data.workers": 2}
    DecoupledTrainer(
        model=model,
        data=(bad, Bad(4, -1, False)),
        blocks=1,
        steps=8,
        batch_size=8,
        engine="local",
        run_dir=run_dir,
        overrides=overrides,
    ).fit()


def test_a_worker_that_fails_or_dies_is_named_with_its_sample(tmp_path: Path) -> None:
    """The data are objects that only this program knows."""
    with pytest.raises(
        LowdimfaError, match=r"item 37 of the data set can't be read \(ValueError: a torn picture"
    ):
        fit_bad(Bad(64, 37, False), tmp_path / "fails")
    with pytest.raises(
        ResourceError, match=r"^data\.workers: .* has ended over training sample 37 \(.*/dev/shm"
    ):
        fit_bad(Bad(64, 37, True), tmp_path / "dies")
    assert not multiprocessing.active_children()
