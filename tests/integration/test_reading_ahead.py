"""Data that worker processes read ahead: the bits of a run without them, and what is said when one fails or ends."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import drawing
import psutil
import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from lowdimfa.data import Reader
from lowdimfa.errors import LowdimfaError, ResourceError, StoppedError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.data import load_dataset, read_ahead
from lowdimfa.services.run.training import batch_order
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.tickets import Ticket

STEPS = 8


def plain(workers: int, **sections: Any) -> dict[str, Any]:
    data = {"factory": "drawing:turned", "workers": workers, "prefetch": 1}
    run = {"evaluate_every_epochs": 1, "checkpoint_every": 3}
    sections["train"] = {"steps": STEPS, "scheduler": None, "microbatches": 4} | sections.get("train", {})
    return specification(blocks=2, data=data, run=run, **sections)


def trained(workers: int, run_dir: Path, steps: int = STEPS) -> tuple[dict[str, Tensor], float]:
    options = plain(workers, train={"steps": steps})
    metrics = DecoupledTrainer(options, engine="local", run_dir=run_dir).fit().metrics
    return export_state(CheckpointStore(run_dir).load(None)), metrics["test_loss"]


def test_a_run_gives_the_same_bits_with_workers_and_leaves_none(tmp_path: Path) -> None:
    """Samples draw random numbers, evaluations come between, and a replica reads its share."""
    state, loss = trained(0, tmp_path / "none")
    ahead, ahead_loss = trained(2, tmp_path / "ahead")
    assert ahead_loss == loss and all(torch.equal(ahead[name], value) for name, value in state.items())
    with thread_fleet(plain(1, placement={"replicas": {0: 2}}), tmp_path / "threads") as fleet:
        fleet.run(0, 3)
        fleet.evaluate()
        fleet.run(3, STEPS)
        torch.testing.assert_close(fleet.model_state(), state, rtol=1e-3, atol=1e-5)
        assert fleet.evaluate().loss == pytest.approx(loss, rel=1e-4)
    assert not multiprocessing.active_children()


def is_of_workers(process: psutil.Process) -> bool:
    """Return whether a process is one of an actor's workers, or what they were forked from."""
    try:
        return process.ppid() != os.getpid() and "multiprocessing" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_whatever_is_asked_for_next_is_read() -> None:
    """As after a loss, which takes a block back, or where a segment of steps ends early."""
    given = parse_specification(plain(2), "test")
    dataset = load_dataset(given)
    reader = Reader(dataset, batch_order(given, dataset.train))
    ahead = read_ahead(given, reader, STEPS)
    asked = random.Random(0).choices(
        [*((step, part) for step in range(STEPS) for part in range(4)), (0, -1)], k=24
    )
    try:
        for step, part in [(0, 0), (0, 1), *asked]:
            found, expected = (
                each.microbatch(Ticket(step, part)) if part >= 0 else each.evaluation_batch(1)
                for each in (ahead, reader)
            )
            assert torch.equal(cast(Tensor, found.inputs()), cast(Tensor, expected.inputs()))
            assert torch.equal(found.targets(), expected.targets())
    finally:
        ahead.close()
    assert not multiprocessing.active_children()


@pytest.mark.xdist_group("ray")
def test_workers_of_actors_give_the_same_bits_and_end_with_them(cluster: None, tmp_path: Path) -> None:
    """The run can't end before they are seen; it is stopped then."""
    folder, servers = Path(drawing.__file__).parent, set[psutil.Process]()

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "evaluated":
            servers.update(filter(is_of_workers, psutil.Process().children(recursive=True)))
            trainer.stop()

    endless = plain(1, train={"steps": 100_000})
    trainer = DecoupledTrainer(endless, run_dir=tmp_path / "ray", user_code=folder, on_event=look)
    with pytest.raises(StoppedError) as stopped:
        trainer.fit()
    assert servers and not psutil.wait_procs(servers, timeout=60)[1]
    assert stopped.value.step is not None
    state, _ = trained(0, tmp_path / "none", stopped.value.step)
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


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_reading_ahead import STEPS, Reader, batch_order, load_dataset, parse_specification, plain, read_ahead, Ticket
given = parse_specification(plain(1), "test")
data = load_dataset(given)
ahead = read_ahead(given, Reader(data, batch_order(given, data.train)), STEPS)
ahead.microbatch(Ticket(0, 0))
print("reading", flush=True)
sys.stdin.read()
"""


def test_workers_end_with_a_process_that_is_killed() -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True) if is_of_workers(child)
        ]
        process.kill()
        assert workers and not psutil.wait_procs(workers, timeout=60)[1]
