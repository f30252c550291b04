"""Blocks with nothing to learn: the bits of the in-process trainer, without errors to learn from or updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.manifest import export_file
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8


def frozen(*patterns: str, model: str = "mlp", q_rule: str = "hebbian", **sections: Any) -> dict[str, Any]:
    plain = specification(model, 4, q_rule, **sections)
    plain["model"] |= {"frozen": list(patterns)}
    if model == "cnn":  # threads share what dropout draws from
        plain["model"]["args"] = plain["model"]["args"] | {"dropout": 0.0}
    return plain


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def in_process(plain: dict[str, Any], run_dir: Path) -> dict[str, torch.Tensor]:
    DecoupledTrainer(plain, engine="local", run_dir=run_dir).fit()
    return exported(run_dir)


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def subscribed(fleet: ThreadFleet) -> list[int]:
    """Return the blocks to which the head sends errors."""
    return [worker.job.index for worker in fleet.workers if worker._links.ends.subscriber is not None]


@pytest.mark.parametrize(
    ("model", "q_rule", "patterns", "learning"),
    [
        ("mlp", "hebbian", ["0.*"], [1, 2]),
        ("mlp", "probed", ["1.*"], [0, 2]),
        ("mlp", "readout", ["0.*", "1.*", "3.*"], [2]),
        ("mlp", "readout", ["0.1.weight"], [0, 1, 2]),
        ("mlp", "probed", ["0.*", "1.*", "2.*"], []),
        ("cnn", "probed", ["0.*", "2.*"], [1]),
        ("cnn", "readout", ["*.0.weight"], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("window", [1, None])
def test_same_bits_as_in_process(
    model: str, q_rule: str, patterns: list[str], learning: list[int], window: int | None, tmp_path: Path
) -> None:
    plain = frozen(*patterns, model=model, q_rule=q_rule, train={"window": window})
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        assert subscribed(fleet) == learning
        drawn = {name: value.clone() for name, value in fleet.model_state().items()}
        fleet.run(0, 3)  # a segment's end changes nothing
        evaluated = fleet.evaluate()
        fleet.run(3, STEPS)
        found = fleet.model_state()
        broadcast = [worker.status().broadcast.messages for worker in fleet.workers]
    assert_same_bits(found, in_process(plain, tmp_path / "local"))
    assert evaluated.samples > 0
    messages = 2 * STEPS + (STEPS // 2 if q_rule == "probed" else 0)
    assert broadcast == [messages * (block in learning) for block in range(3)] + [messages * len(learning)]
    parameters = {name for name in found if name.endswith(("weight", "bias"))}
    moved = {name for name in parameters if not torch.equal(found[name], drawn[name])}
    prefixes = tuple(pattern.strip("*") for pattern in patterns)
    if "*.0.weight" in patterns:
        assert not [name for name in moved if name.endswith(".0.weight")]
    else:
        assert moved == {name for name in parameters if not name.startswith(prefixes)}


@pytest.mark.parametrize("staleness", [1, 2])
def test_stale_blocks_learn_beside_frozen_ones(staleness: int, tmp_path: Path) -> None:
    plain = frozen("0.*", "2.0.weight", train={"staleness": staleness, "window": None})
    with thread_fleet(plain, tmp_path) as fleet:
        drawn = {name: value.clone() for name, value in fleet.model_state().items()}
        fleet.run(0, STEPS)
        found = fleet.model_state()
        assert [worker.status().applied_steps for worker in fleet.workers] == [STEPS] * 4
    kept = {name for name in found if torch.equal(found[name], drawn[name])}
    assert kept == {"0.1.weight", "0.1.bias", "2.0.weight"}


@pytest.mark.parametrize("replicas", [{0: 2}, {0: 2, 1: 4}, {1: 2, 2: 2}])
def test_replicas_of_frozen_blocks_end_together(replicas: dict[int, int], tmp_path: Path) -> None:
    train = {
        "microbatches": 4,
        "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.05}},
        "scheduler": None,
    }
    plain = frozen("0.*", "2.*", q_rule="probed", train=train, placement={"replicas": replicas})
    alone = plain | {"placement": {}}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, 3)
        fleet.run(3, STEPS)
        found = fleet.model_state()
    expected = in_process(alone, tmp_path / "local")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_replicas_average_the_statistics_of_a_frozen_block(tmp_path: Path) -> None:
    train = {"microbatches": 4}
    plain = frozen("0.*", model="cnn", train=train, placement={"replicas": {0: 2}})
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 3)
        first, second = (worker.stage.state().tensors for worker in fleet.workers[:2])
        assert fleet.workers[1].job.seat == (0, 1)
        assert not [name for name, value in first.items() if not torch.equal(value, second[name])]
        assert float(first["model/0.1.running_mean"].abs().sum()) > 0


def test_an_early_end_is_one_for_frozen_and_learning_blocks(tmp_path: Path) -> None:
    plain = frozen("0.*", "1.*", train={"steps": 100_000, "scheduler": None, "microbatches": 2})
    with thread_fleet(plain, tmp_path) as fleet:

        def run(worker: Any) -> int:
            return int(worker.run_steps(0, 100_000))

        futures = [fleet._pool.submit(run, worker) for worker in fleet.workers]
        head = fleet.workers[-1]
        while head.status().applied_steps < 3:
            pass
        first = fleet.workers[0]
        first.end_at(0)
        while (end := first.ends_at()) is None:
            pass
        for worker in fleet.workers[1:]:
            worker.end_at(end)
        assert [future.result(60) for future in futures] == [end] * 4


def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    plain = frozen("0.*", "1.0.weight", model="cnn", q_rule="readout", run={"checkpoint_every": 4, "keep": 9})
    whole = in_process(plain, tmp_path / "whole")
    resumed = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "whole", resume_step=4).fit()
    assert_same_bits(exported(resumed.path), whole)


def fine_tuned(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """Return the specification of a run on a trained body, of which the first block is frozen, with a new head."""
    before = specification("mlp", 2, train={"steps": 4})
    DecoupledTrainer(before, engine="local", run_dir=tmp_path / "before").fit()
    export_file(CheckpointStore(tmp_path / "before").load(None), tmp_path / "body.safetensors")
    plain = frozen("0.*", q_rule="readout", **sections)
    plain["model"] |= {"weights": {"path": str(tmp_path / "body.safetensors"), "missing": ["3.*"]}}
    return plain


def test_blocks_begin_with_their_part_of_a_file(tmp_path: Path) -> None:
    plain = fine_tuned(tmp_path)
    before = exported(tmp_path / "before")
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        begun = fleet.model_state()
        assert {name for name in begun if torch.equal(begun[name], before[name])} == {
            name for name in before if not name.startswith("3.")
        }
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))
    assert torch.equal(found["0.1.weight"], before["0.1.weight"])


@pytest.mark.usefixtures("cluster")
def test_a_frozen_block_that_is_lost_costs_no_step_and_no_bit(tmp_path: Path) -> None:
    steps = {"steps": 60}
    undisturbed = fine_tuned(tmp_path, train=steps)
    crash = {"kind": "crash", "block": 0, "step": 20}
    plain = undisturbed | {
        "run": {"on_failure": "rejoin", "liveness_seconds": 60.0, "evaluate_every_epochs": 0},
        "drill": {"faults": [crash]},
    }
    events: list[dict[str, Any]] = []
    DecoupledTrainer(plain, run_dir=tmp_path / "ray", on_event=events.append).fit()
    (recovered,) = [event for event in events if event["event"] == "recovered"]
    assert recovered["blocks"] == [0] and recovered["missed"] == {}
    assert_same_bits(exported(tmp_path / "ray"), in_process(undisturbed, tmp_path / "local"))
