"""Rivals of this runtime in the benchmark of throughput: each learns what it says, and what it sends is counted."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from copy import deepcopy
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.peers import Single
from benchmarks.throughput.places import LocalPlace
from benchmarks.throughput.registry import RIVALS, configuration
from benchmarks.throughput.worker import build

SECONDS = 120.0
MLP = {"factory": "lowdimfa.models:mlp", "args": {"in_features": 64, "width": 32, "depth": 4, "classes": 10}}

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [f"benchmarks.throughput.{RIVALS[name].made_by.partition(':')[0]}" for name in RIVALS]
)


def specification(**train: Any) -> dict[str, Any]:
    return NETWORKS["tiny"].specification(2, train=train) | {"model": MLP | {"blocks": 2}}


def take_part(told: dict[str, Any], steps: Sequence[int], answers: Connection) -> None:
    """Be one process of a system: run turns of so many steps, and answer."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    mine = build(told)
    turns = [mine.steps("", 0, count) for count in steps]
    answers.send((turns, mine.evaluate("")))
    answers.recv()  # the others may still be evaluating
    mine.close()


def train(name: str, world: int, steps: Sequence[int], folder: Path, **changes: Any) -> list[Any]:
    """Return what the processes of a system answer to turns of so many steps: turns, and an evaluation."""
    told = {"specification": specification()} | configuration(name) | changes
    told |= {"world": world, "meet": LocalPlace(folder).meet(), "exchange": str(folder)}
    started = []
    for rank in range(world):
        here, there = PROCESSES.Pipe()
        process = PROCESSES.Process(target=take_part, args=(told | {"rank": rank}, steps, there), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    try:
        answers = []
        for _, here in started:
            assert here.poll(SECONDS), "no answer"
            answers.append(here.recv())
        for _, here in started:
            here.send("end")
        return answers
    finally:
        for process, _ in started:
            process.join(SECONDS)
            process.kill()


def losses(answer: Any) -> list[float]:
    turns, _ = answer
    return [loss for turn in turns for loss in turn["losses"]]


class Delayed(Single):
    """One process that applies the gradients of its last weights but one."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told | {"parts": 4})
        self.older = deepcopy(self._model)

    def step(self, number: int) -> float:
        now = self._model
        before = deepcopy(now)
        total = torch.zeros(())
        for indices in self.batch(number).chunk(self._parts):
            loss = self.loss(self.older(self.data.inputs(indices)), self.data.targets(indices))
            (loss / self._parts).backward()
            total += loss.detach()
        for value, stale in zip(now.parameters(), self.older.parameters(), strict=True):
            value.grad = stale.grad
        self._optimizer.step()
        self.older = before
        return total.item() / self._parts


class DelayedNesterov(Delayed):
    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        settings = {"betas": (0.99, 0.999), "weight_decay": 0.01, "decoupled_weight_decay": True}
        return torch.optim.NAdam(parameters, 1e-3, **settings)


@pytest.mark.parametrize(
    ("name", "world", "alone"),
    [("2bw", 2, Delayed), ("2bw", 3, Delayed), ("2bw-nesterov", 3, DelayedNesterov)],
)
def test_two_buffered_weights_learn_what_one_process_does_with_the_same_delay(
    name: str, world: int, alone: type[Delayed], tmp_path: Path
) -> None:
    *_, last = answers = train(name, world, (5, 3), tmp_path)
    reference = alone({"specification": specification()})
    expected = reference.steps("", 0, 8)["losses"]
    assert losses(last) == pytest.approx(expected, rel=1e-6)
    # Without the delay they would differ.
    exact = Single({"specification": specification(), "parts": 4}).steps("", 0, 8)["losses"]
    assert losses(last)[:2] == pytest.approx([exact[0], expected[1]], rel=1e-6)
    assert abs(expected[-1] - exact[-1]) > 1e-3
    assert answers[0][1] == pytest.approx(reference.evaluate(""), rel=1e-6)
