"""Rivals of this runtime in the benchmark of throughput: each learns what it says, and what it sends is counted."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.throughput.hosts import Hosts, NoHostsError
from benchmarks.throughput.latency import enter
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
    if "namespace" in told:
        enter(told["namespace"])
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if "namespace" in told else "lo"
    torch.set_num_threads(1)
    mine = build(told)
    turns = []
    for count in steps:
        dist.barrier()
        before = transmitted()
        turns.append(mine.steps("", 0, count))
        dist.barrier()
        turns[-1]["transmitted"] = transmitted() - before
    answers.send((turns, mine.evaluate("")))
    answers.recv()  # the others may still be evaluating
    mine.close()


def transmitted() -> int:
    """Return the bytes that this process's host has sent, with all headers; 0 without a host of its own."""
    found = re.search(r"eth0:(?:\s+\d+){8}\s+(\d+)", Path("/proc/thread-self/net/dev").read_text())
    return int(found[1]) if found else 0


def train(
    name: str, world: int, steps: Sequence[int], folder: Path, hosts: Hosts | None = None, **changes: Any
) -> list[Any]:
    """Return what the processes of a system answer to turns of so many steps: turns, and an evaluation."""
    told = {"specification": specification()} | configuration(name) | changes
    meet = f"{hosts.address(0)}:29500" if hosts else LocalPlace(folder).meet()
    told |= {"world": world, "meet": meet, "exchange": str(folder)}
    started = []
    for rank in range(world):
        here, there = PROCESSES.Pipe()
        own = told | {"rank": rank} | ({"namespace": hosts.name(rank)} if hosts else {})
        process = PROCESSES.Process(target=take_part, args=(own, steps, there), daemon=True)
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
    turns = answer[0]
    return [loss for turn in turns for loss in turn["losses"]]


class Delayed(Single):
    """One process that applies the gradients of its last weights but one."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__({"parts": 4} | told)
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
    [
        ("2bw", 3, Delayed),
        pytest.param("2bw", 2, Delayed, marks=pytest.mark.slow),
        pytest.param("2bw-nesterov", 3, DelayedNesterov, marks=pytest.mark.slow),
    ],
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


@pytest.mark.slow
def test_two_stages_with_two_versions_of_the_weights_need_no_micro_batches(tmp_path: Path) -> None:
    whole = {"specification": specification(microbatches=1)}
    *_, last = train("2bw-whole", 2, (4, 2), tmp_path, **whole)
    expected = Delayed(whole | {"parts": 1}).steps("", 0, 6)["losses"]
    assert losses(last) == pytest.approx(expected, rel=1e-5)


def test_a_pipeline_is_backpropagation_in_one_process_with_its_running_statistics(tmp_path: Path) -> None:
    plain = NETWORKS["tiny"].specification(2)
    *_, last = answers = train("1f1b", 2, (3,), tmp_path, specification=plain)
    alone = Single({"specification": plain, "parts": 4})
    assert losses(last) == pytest.approx(alone.steps("", 0, 3)["losses"], rel=1e-5)
    assert answers[0][1] == pytest.approx(alone.evaluate(""), rel=1e-4)


def test_what_runs_layers_again_learns_and_counts_what_it_would_without(tmp_path: Path) -> None:
    plain = NETWORKS["tiny"].specification(2)
    *_, last = answers = train("1f1b-recompute", 2, (3,), tmp_path, specification=plain)
    alone = Single({"specification": plain, "parts": 4})
    expected, found = alone.steps("", 0, 3)["losses"], alone.evaluate("")
    assert losses(last) == pytest.approx(expected, rel=1e-5)
    assert answers[0][1] == pytest.approx(found, rel=1e-4)
    again = Single({"specification": plain, "parts": 4, "recompute": True})
    assert again.steps("", 0, 3)["losses"] == expected
    assert again.evaluate("") == found


class Together(Single):
    """Two processes of local SGD, one after the other."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told | {"parts": 1})
        self.shared = [value.detach().clone() for value in self._model.parameters()]
        self.speed = [torch.zeros_like(value) for value in self.shared]
        self.replicas = [deepcopy(self._model) for _ in range(2)]
        self.optimizers = [self.optimizer(list(one.parameters())) for one in self.replicas]

    def step(self, number: int) -> float:
        found = []
        for model, optimizer, indices in zip(
            self.replicas, self.optimizers, self.batch(number).chunk(2), strict=True
        ):
            loss = self.loss(model(self.data.inputs(indices)), self.data.targets(indices))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        if number % 2:
            self.meet()
        return found[0]

    @torch.no_grad()
    def meet(self) -> None:
        both = zip(*(one.parameters() for one in self.replicas), strict=True)
        for shared, speed, (one, other) in zip(self.shared, self.speed, both, strict=True):
            moved = shared - (one + other) / 2
            speed.mul_(0.9).add_(moved)
            shared -= 0.7 * (moved + 0.9 * speed)
            one.copy_(shared)
            other.copy_(shared)


def test_local_sgd_meets_after_its_steps_and_goes_on_from_the_outer_one(tmp_path: Path) -> None:
    first, second = train("diloco-h2", 2, (3, 2), tmp_path)
    expected = Together({"specification": specification()}).steps("", 0, 6)["losses"]
    assert losses(first) == pytest.approx(expected, rel=1e-4)
    turns, _ = second
    assert [turn["steps"] for turn in turns] == [4, 2]  # whole rounds
    weights = 64 * 32 + 32 + 2 * (32 * 32 + 32) + 32 * 10 + 10
    assert [turn["backward_bytes"] for turn in turns] == [2 * 4 * weights, 4 * weights]


def test_powersgd_is_data_parallel_training_where_the_rank_leaves_nothing_out(tmp_path: Path) -> None:
    exact = Single({"specification": specification(), "parts": 1}).steps("", 0, 6)["losses"]
    whole = train("powersgd-r64", 2, (6,), tmp_path)
    both = [sum(pair) / 2 for pair in zip(*map(losses, whole), strict=True)]
    assert both == pytest.approx(exact, rel=1e-5)
    narrow = train("powersgd-r1", 2, (2, 4), tmp_path)
    both = [sum(pair) / 2 for pair in zip(*map(losses, narrow), strict=True)]
    assert both[:3] == pytest.approx(exact[:3], rel=1e-5)  # the first two updates are whole
    assert both[3:] != pytest.approx(exact[3:], rel=1e-3)
    assert both[-1] < both[0]
    weights = 64 * 32 + 2 * 32 * 32 + 32 * 10
    factors, biases = 64 + 32 + 2 * (32 + 32) + 32 + 10, 3 * 32 + 10
    turns, _ = narrow[0]
    assert [turn["backward_bytes"] for turn in turns] == [
        2 * 4 * (weights + biases),
        4 * 4 * (factors + biases),
    ]


@pytest.mark.parametrize(
    "name",
    ["2bw+int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("1f1b+int8", "1f1b", "ddp"))],
)
def test_the_bytes_that_are_counted_are_those_that_leave_a_host(name: str, tmp_path: Path) -> None:
    try:
        with Hosts(2) as hosts:
            answers = train(name, 2, (1, 8), tmp_path, hosts)
    except NoHostsError as reason:
        pytest.skip(str(reason))
    for turns, _ in answers:
        counted = turns[1]["forward_bytes"] + turns[1]["backward_bytes"]
        # Headers of Ethernet, IP, TCP and Gloo, and TCP's own messages.
        assert counted < turns[1]["transmitted"] < 1.15 * counted + 20_000


EXCHANGE = """
import socket, sys, time

if sys.argv[1] == "answer":
    with socket.create_server(("", 5000)) as server:
        print("up", flush=True)
        with server.accept()[0] as link:
            whole = b"".join(iter(lambda: link.recv(1 << 16), b""))
    print(len(whole), set(whole) == {7})
else:
    began = time.monotonic()
    with socket.create_connection((sys.argv[1], 5000)) as link:
        print(time.monotonic() - began)
        link.sendall(bytes([7]) * 1_000_000)
"""


def test_links_take_the_time_that_they_are_to_take_and_lose_nothing() -> None:
    command = [sys.executable, "-c", EXCHANGE]
    try:
        with Hosts(2, latency_ms=40) as hosts:
            server = hosts.run(0, [*command, "answer"], os.environ, stdout=subprocess.PIPE)
            assert server.stdout is not None and server.stdout.readline() == "up\n"
            client = hosts.run(1, [*command, hosts.address(0)], os.environ, stdout=subprocess.PIPE)
            answer, _ = client.communicate(timeout=SECONDS)
            arrived, _ = server.communicate(timeout=SECONDS)
    except NoHostsError as reason:
        pytest.skip(str(reason))
    assert float(answer) >= 0.08  # there and back
    assert arrived == "1000000 True\n"
