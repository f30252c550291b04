"""Data-parallel replicas of blocks: the training of one replica with the same batch, and one state in all of them."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa import QRule
from lowdimfa.errors import PeerError
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.rpc.security import Security

STEPS = 6

SGD = {"optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.05, "momentum": 0.9}}, "scheduler": None}
"""An optimiser under which rounding stays rounding: Adam's would make much of a gradient that is nearly zero."""


def replicated(replicas: Any, model: str = "mlp", q_rule: str = "hebbian", **train: Any) -> dict[str, Any]:
    train = {"microbatches": 4} | SGD | train
    return specification(model, 3, q_rule, train=train, placement={"replicas": replicas})


def alone(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the same run with one replica of each block."""
    single = copy.deepcopy(plain)
    single["placement"]["replicas"] = 1
    return single


def states(fleet: ThreadFleet) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Return a copy of every worker's state."""
    return {
        worker.job.seat: {name: value.clone() for name, value in worker.stage.state().tensors.items()}
        for worker in fleet.workers
    }


def assert_alike(found: dict[tuple[int, int], dict[str, torch.Tensor]]) -> None:
    """Every replica has the bits of rank 0 of its block."""
    for (block, _), state in found.items():
        first = found[block, 0]
        assert state.keys() == first.keys()
        assert not [name for name, value in first.items() if not torch.equal(value, state[name])]


def trained(plain: dict[str, Any], run_dir: Path) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    with thread_fleet(plain, run_dir) as fleet:
        fleet.run(0, 2)  # a segment's end changes nothing
        assert_alike(states(fleet))
        fleet.run(2, STEPS)
        return states(fleet)


class Summing(QRule):
    """Applies by itself what it has added up, which replicas add up further."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.sum = torch.zeros_like(self.weights)

    def accumulate(self, tapped: torch.Tensor, error: torch.Tensor) -> None:
        self.sum += tapped.t() @ error

    def pending(self) -> torch.Tensor | None:
        return self.sum

    def set_pending(self, total: torch.Tensor) -> None:
        self.sum = total.clone()

    def step(self) -> None:
        self.weights -= 0.1 * self.sum
        self.sum.zero_()


@pytest.mark.parametrize("q_rule", ["hebbian", "readout", "probed", "fixed", f"{__name__}:Summing"])
@pytest.mark.parametrize("replicas", [2, {0: 4, 1: 2}])
def test_replicas_train_as_one_does(replicas: Any, q_rule: str, tmp_path: Path) -> None:
    plain = replicated(replicas, q_rule=q_rule)
    found = trained(plain, tmp_path / "replicas")
    assert_alike(found)
    expected = trained(alone(plain), tmp_path / "alone")
    for seat, state in expected.items():
        torch.testing.assert_close(found[seat], state, rtol=1e-3, atol=2e-6)


def test_replicas_share_a_smaller_last_batch(tmp_path: Path) -> None:
    plain = replicated({0: 4, 1: 2}, limit_samples=150)  # the third step has 22: parts of 6, 6, 5, 5
    plain["data"]["last_batch"] = "keep"
    found = trained(plain, tmp_path / "replicas")
    assert_alike(found)
    expected = trained(alone(plain), tmp_path / "alone")
    for seat, state in expected.items():
        torch.testing.assert_close(found[seat], state, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("tap", ["auto", "odd_layers:SmallGrid"])
def test_replicas_of_a_network_with_batch_norm_train_as_one_does(tap: str, tmp_path: Path) -> None:
    plain = replicated({0: 2, 1: 4}, "cnn")
    plain["feedback"]["tap"] = tap
    plain["model"]["args"] = plain["model"]["args"] | {
        "dropout": 0.0
    }  # threads share what dropout draws from
    found = trained(plain, tmp_path / "replicas")
    assert_alike(found)
    expected = trained(alone(plain), tmp_path / "alone")
    running = [name for name in found[0, 0] if "running" in name]
    assert running
    for seat, state in expected.items():
        learned = {name: value for name, value in state.items() if "running" not in name}
        learned = {name: value for name, value in learned.items() if "num_batches" not in name}
        torch.testing.assert_close(
            {name: found[seat][name] for name in learned}, learned, rtol=1e-3, atol=2e-5
        )
    # Each replica's statistics move with its own batches only, so the mean follows the data more slowly.
    for name in running:
        assert torch.isfinite(found[0, 0][name]).all()
        assert not torch.equal(found[0, 0][name], torch.zeros_like(found[0, 0][name]))


@pytest.mark.parametrize("staleness", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stale_replicas_stay_alike_and_learn(staleness: int, tmp_path: Path) -> None:
    plain = replicated({0: 2, 1: 4}, staleness=staleness, steps=40)
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 40)
        assert_alike(states(fleet))
        results = fleet.workers[-1].finished_steps()
        evaluation = fleet.evaluate()
    assert [result.step for result in results] == list(range(40))
    assert evaluation.samples == 297
    assert evaluation.accuracy is not None and evaluation.accuracy > 0.5


def test_every_test_sample_is_evaluated_once_by_whichever_replica(tmp_path: Path) -> None:
    plain = replicated({0: 4, 1: 2}, batch_size=32)
    with thread_fleet(plain, tmp_path / "replicas") as fleet:
        first, second = fleet.evaluate(), fleet.evaluate()
    with thread_fleet(alone(plain), tmp_path / "alone") as fleet:
        expected = fleet.evaluate()
    assert first == second == expected


def test_an_early_end_is_one_for_all_replicas(tmp_path: Path) -> None:
    plain = replicated(2, staleness=1, steps=4000)
    with thread_fleet(plain, tmp_path) as fleet:
        asked = False

        def run(worker: BlockWorker) -> int:
            return worker.run_steps(0, 4000)

        futures = [fleet._pool.submit(run, worker) for worker in fleet.workers]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not asked and fleet.workers[0].status().applied_steps >= 3:
                asked = True
                fleet.workers[0].end_at(0)
            if asked and (end := fleet.workers[0].ends_at()) is not None:
                break
            time.sleep(0.005)
        for worker in fleet.workers:
            worker.end_at(end)  # type: ignore[arg-type]
        reached = {future.result(60) for future in futures}
        assert reached == {end}
        assert end is not None and 3 < end < 4000
        assert_alike(states(fleet))
        fleet.run(end, end + 2)  # and they go on from there
        assert_alike(states(fleet))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({}, (3 * 64, 3 * 64)),
        ({"last_batch": "keep"}, (2 * (64 + 11), 2 * (64 + 11))),  # the third step has 22
    ],
)
def test_each_micro_batch_is_worked_on_once_and_gradients_travel_among_the_replicas_alone(
    data: dict[str, str], parts: tuple[int, int], tmp_path: Path
) -> None:
    plain = replicated({0: 2}, **({"limit_samples": 150} if data else {}))
    plain["data"] |= data
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, STEPS)
        samples, gradients = {}, {}
        for worker in fleet.workers:
            worker._links.counts.count_into(worker._metrics)
            labels = {"job": tmp_path.name, "block": str(worker.job.index), "replica": str(worker.job.rank)}
            read = worker._metrics.registry.get_sample_value
            samples[worker.job.seat] = read("lowdimfa_block_trained_samples_total", labels)
            gradients[worker.job.seat] = read(
                "lowdimfa_block_gradient_bytes_total", labels | {"direction": "sent"}
            )
        learned = sum(parameter.nbytes for parameter in fleet.workers[0].stage.updater.trained)
    assert samples == {(0, 0): parts[0], (0, 1): parts[1], (1, 0): sum(parts), (2, 0): sum(parts)}
    assert gradients[1, 0] == gradients[2, 0] == 0
    for rank in (0, 1):  # half of it as a part, the other half as a sum, and a few bytes around
        assert STEPS * learned <= gradients[0, rank] <= STEPS * (learned + 64)
    assert {metric.name for metric in METRICS} >= {"lowdimfa_block_gradient_bytes_total"}


def test_a_replica_that_dies_is_named_within_the_liveness(tmp_path: Path) -> None:
    plain = replicated({0: 2}, steps=100_000)
    plain["run"]["liveness_seconds"] = 2.0
    with thread_fleet(plain, tmp_path) as fleet:
        futures = {
            worker.job.seat: fleet._pool.submit(worker.run_steps, 0, 100_000) for worker in fleet.workers
        }
        while fleet.workers[0].status().applied_steps < 2:
            time.sleep(0.01)
        dead = fleet.workers[1]
        assert dead.job.seat == (0, 1)
        began = time.monotonic()
        dead._links._server.stop(0)
        dead._links.close(0)
        with pytest.raises(PeerError, match="block 0, replica 1"):
            futures[0, 0].result(30)
        assert time.monotonic() - began < 5 * 2.0
        for worker in fleet.workers:
            worker.abort(PeerError("stopped"))
        for future in futures.values():
            future.exception(30)


def test_several_nodes_use_mutual_tls_between_replicas_too(tmp_path: Path) -> None:
    with thread_fleet(replicated(2), tmp_path, security=Security.mutual_tls()) as fleet:
        fleet.run(0, 2)
        assert_alike(states(fleet))
