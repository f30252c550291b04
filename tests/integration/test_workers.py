"""Blocks with real schedules, threads and gRPC against the in-process trainer: the same bits, the same limits."""

from __future__ import annotations

import math
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from relay import Relay
from specifications import specification
from thread_fleet import thread_fleet
from torch import Tensor, nn

from lowdimfa.errors import NotFiniteError, PeerError
from lowdimfa.services.block.building import Checkpointed
from lowdimfa.services.block.snapshot import SnapshotShelf
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.state import copied
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8


def counts(relay: Relay) -> tuple[int, int]:
    """Return bytes towards the relay's target and from it."""
    return relay.upstream, relay.downstream


def in_process(plain: dict[str, object], run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the model that the in-process trainer makes of a specification."""
    DecoupledTrainer(plain, engine="local", run_dir=run_dir).fit()
    return export_state(CheckpointStore(run_dir).load(None))


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different


@pytest.mark.parametrize(
    ("model", "blocks", "q_rule"),
    [
        *product(("mlp", "transformer"), (2, 4), ("fixed", "hebbian", "probed", "readout")),
        ("cnn", 2, "probed"),
        ("cnn", 4, "readout"),
    ],
)
def test_same_bits_as_in_process(model: str, blocks: int, q_rule: str, tmp_path: Path) -> None:
    plain = specification(model, blocks, q_rule)
    if model == "cnn":  # threads share what dropout draws from
        plain["model"]["args"] = plain["model"]["args"] | {"dropout": 0.0}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, 3)  # a segment's end changes nothing
        fleet.run(3, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize(("blocks", "q_rule"), [(2, "readout"), (4, "probed")])
def test_a_smaller_last_batch_gives_the_same_bits(blocks: int, q_rule: str, tmp_path: Path) -> None:
    plain = specification(
        "transformer",
        blocks,
        q_rule,
        data={"last_batch": "keep"},
        train={"limit_samples": 150, "microbatches": 4},  # the third step has 22: parts of 6, 6, 5, 5
    )
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, 3)
        fleet.run(3, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_averages_and_what_is_measured_with_them_have_the_same_bits(model: str, tmp_path: Path) -> None:
    metrics = {"spread": "torch.nn.functional.cross_entropy", "own": "test_workers:Spread"}
    plain = specification(model, 2, "readout", train={"average": {"decay": 0.8}, "metrics": metrics})
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        evaluated = [fleet.evaluate() for _ in range(2)]
        found = {
            name.removeprefix("average/"): value
            for worker in fleet.workers
            for name, value in worker.state().tensors.items()
            if name.startswith("average/")
        }
    result = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "local").fit()
    expected = export_state(CheckpointStore(tmp_path / "local").load(None), average=True)
    assert_same_bits(found, {name: expected[name] for name in found})
    assert found and evaluated[0] == evaluated[1]
    assert evaluated[0].metrics == result.metrics["metrics"] and evaluated[0].metrics["own"]


class Spread:
    """The largest and the smallest output of an evaluation."""

    def reset(self) -> None:
        self.seen: list[torch.Tensor] = []

    __init__ = reset

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        assert outputs.shape[:-1] == targets.shape and outputs.dim() == 2
        self.seen.append(torch.stack([outputs.min(), outputs.max()]))

    def compute(self) -> torch.Tensor:
        return torch.stack([torch.stack(self.seen).min(), torch.stack(self.seen).max()])


@pytest.mark.parametrize(
    ("model", "q_rule", "tap"),
    [
        ("mlp", "readout", "auto"),
        ("transformer", "readout", "auto"),
        ("cnn", "readout", "odd_layers:SmallGrid"),
        ("cnn", "probed", "odd_layers:SmallGrid"),
    ],
)
def test_errors_at_every_layer_give_the_same_bits(model: str, q_rule: str, tap: str, tmp_path: Path) -> None:
    plain = specification(model, 2, q_rule, feedback={"every_layer": True, "tap": tap})
    if model == "cnn":  # threads share what dropout draws from
        plain["model"]["args"] = plain["model"]["args"] | {"dropout": 0.0}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize(("model", "every_layer"), [("mlp", False), ("transformer", False), ("mlp", True)])
def test_classes_beside_narrow_errors_give_the_same_bits(
    model: str, every_layer: bool, tmp_path: Path
) -> None:
    feedback = {"error_dim": 2, "every_layer": every_layer}
    plain = specification(model, 4 - 2 * every_layer, "readout", feedback=feedback)
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
        carried = fleet.workers[0].status().broadcast.payload_bytes
    assert carried == STEPS * 64 * 4 * (2 + 1)
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize("p_rule", ["oja", "pca"])
def test_a_learned_projection_and_a_narrow_window_give_the_same_bits(p_rule: str, tmp_path: Path) -> None:
    feedback = {"error_dim": 3, "p_rule": p_rule, "p_every": 3}
    plain = specification("mlp", 4, "hebbian", feedback=feedback, train={"microbatches": 8, "window": 2})
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize(
    ("model", "q_rule"), [("mlp", "readout"), ("transformer", "hebbian"), ("cnn", "probed")]
)
def test_muon_gives_the_same_bits(model: str, q_rule: str, tmp_path: Path) -> None:
    plain = specification(
        model, 4, q_rule, train={"optimizer": {"factory": "lowdimfa.muon:Muon", "args": {"lr": 0.02}}}
    )
    if model == "cnn":  # threads share what dropout draws from
        plain["model"]["args"] = plain["model"]["args"] | {"dropout": 0.0}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


def test_autocast_clipping_and_settings_per_block_give_the_same_bits(tmp_path: Path) -> None:
    per_block = {
        0: {
            "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.1, "momentum": 0.9}},
            "grad_clip": 0.5,
        },
        2: {"scheduler": {"factory": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 3}}},
    }
    plain = specification(
        "transformer", 4, "hebbian", train={"precision": "bf16", "grad_clip": 1.0, "per_block": per_block}
    )
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
        optimizers = [type(worker.stage.updater.optimizer).__name__ for worker in fleet.workers]
    assert optimizers == ["SGD", "AdamW", "AdamW", "AdamW"]
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize(
    ("model", "activations", "times", "q_rule"),
    [
        ("transformer", "bf16", 2, "probed"),
        ("mlp", "int8", 3.5, "probed"),
        ("cnn", "int4", 7, "readout"),
        ("transformer", {"rank": 4}, 7, "hebbian"),
        ("cnn", {"rank": 1}, 7, "readout"),
    ],
)
def test_packed_activations_give_the_same_bits_with_less_traffic(
    model: str, activations: Any, times: float, q_rule: str, tmp_path: Path
) -> None:
    coarse = {"train": {"activations": activations}, "feedback": {"q_rule": q_rule, "broadcast": "bf16"}}
    plain = specification(model, 3, q_rule, **coarse)
    if model == "cnn":
        plain["model"]["args"] = plain["model"]["args"] | {"dropout": 0.0}
    with thread_fleet(plain, tmp_path / "packed") as fleet:
        fleet.run(0, STEPS)
        found, ends = fleet.model_state(), fleet.workers[0]._links.ends
        sent = sum(end.traffic.count().payload_bytes for end in ends.senders.values())
        errors = ends.subscriber.traffic.count().payload_bytes if ends.subscriber else 0
        evaluated = fleet.evaluate()
    run = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "local").fit()
    assert_same_bits(found, export_state(CheckpointStore(tmp_path / "local").load(None)))
    assert (evaluated.loss, evaluated.accuracy) == (run.metrics["test_loss"], run.metrics["test_accuracy"])
    plan = make_run_plan(parse_specification(plain, "test"))
    block = plan.network.blocks[0]
    assert sent == STEPS * 2 * plan.network.sent_bytes(0, 32)
    assert errors == STEPS * 64 * plan.network.error_bytes
    probed = 1.25 if q_rule == "probed" else 1
    assert sent * times <= probed * STEPS * 64 * 4 * math.prod(block.output_shape)


def test_a_single_block_is_first_and_head(tmp_path: Path) -> None:
    plain = specification("mlp", 1)
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize("staleness", [1, 2])
def test_staleness_trains_every_step_within_its_bounds(staleness: int, tmp_path: Path) -> None:
    plain = specification("transformer", 3, "hebbian", train={"staleness": staleness, "steps": 100})
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 100)
        results = fleet.workers[-1].finished_steps()
        accuracy = fleet.evaluate().accuracy
    assert [result.step for result in results] == list(range(100))
    assert sum(result.loss for result in results[-10:]) < 0.7 * sum(result.loss for result in results[:10])
    assert accuracy is not None and accuracy > 0.5


def test_evaluation_counts_every_test_sample_and_changes_nothing(tmp_path: Path) -> None:
    plain = specification("cnn", 4)
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 2)
        before = fleet.model_state()
        first, second = fleet.evaluate(), fleet.evaluate()
        assert_same_bits(fleet.model_state(), before)
    assert first == second
    assert first.samples == first.counted == 297


def test_each_block_receives_four_bytes_per_error_dimension_and_little_more(tmp_path: Path) -> None:
    """Watch the wire between the head and one block: payload, framing, and no gradient going back up."""
    train = {"batch_size": 128, "microbatches": 2, "steps": 20}
    plain = specification("mlp", 3, train=train, placement={"transport": "grpc"})
    security = Security.loopback()
    with thread_fleet(plain, tmp_path, connect=False, security=security) as fleet:
        addresses = [worker.reachable.rpc for worker in fleet.workers]
        with Relay(addresses[-1]) as errors, Relay(addresses[1]) as activations:
            # Block 0 reaches the head, and block 1, only by way of the relays.
            behind = [addresses[0], activations.address, errors.address]
            fleet.each(lambda worker: worker.connect(behind if worker.job.index == 0 else addresses))
            fleet.each(lambda worker: worker.wait_until_connected())
            fleet.run(0, 2)
            before = counts(errors), counts(activations)
            fleet.run(2, 20)
            after = counts(errors), counts(activations)
        status = fleet.workers[0].status()
    samples = 18 * 128
    (to_head, from_head), (downstream, upstream) = (
        (late[0] - early[0], late[1] - early[1]) for early, late in zip(before, after, strict=True)
    )
    payload = 4 * 10 * samples
    assert status.broadcast.payload_bytes == 4 * 10 * 20 * 128
    assert payload <= from_head <= 1.1 * payload
    assert downstream >= 4 * 24 * samples  # activations of width 24 went down
    assert (
        upstream < 0.02 * downstream
    )  # only acknowledgements came back up: a gradient would be as large again
    assert to_head < 0.02 * payload


def test_a_loss_that_is_not_finite_names_block_and_step(tmp_path: Path) -> None:
    plain = specification("mlp", 3, train={"optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 1e30}}})
    plain["train"]["scheduler"] = None
    with thread_fleet(plain, tmp_path) as fleet:
        with pytest.raises((NotFiniteError, PeerError)):
            fleet.each(_run_or_stop_others(fleet))
        failures = [worker.failure for worker in fleet.workers if hasattr(worker, "failure")]
    assert any(isinstance(error, NotFiniteError) and error.step in (1, 2) for error in failures)


def _run_or_stop_others(fleet):  # type: ignore[no-untyped-def]
    def run(worker):  # type: ignore[no-untyped-def]
        try:
            worker.run_steps(0, STEPS)
        except Exception as error:
            worker.failure = error
            for other in fleet.workers:
                other.abort(PeerError("stopped"))
            raise

    return run


class SlowAtFirst(nn.Linear):
    """Takes longer for its first forward pass, as a layer does that is compiled in it."""

    begun = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.begun:
            self.begun = True
            time.sleep(0.7)
        return super().forward(x)


def slow_at_first() -> nn.Sequential:
    inner = (SlowAtFirst(8, 8) for _ in range(3))
    return nn.Sequential(nn.Flatten(), SlowAtFirst(64, 8), *inner, SlowAtFirst(8, 10))


def test_blocks_may_be_slow_one_after_the_other(tmp_path: Path) -> None:
    """Each is below the liveness, and so none is lost, though the last one waits for all others."""
    plain = {
        "model": {"factory": f"{__name__}:slow_at_first", "blocks": ["2", "3", "4", "5"]},
        "data": {"factory": "lowdimfa.data:digits"},
        "train": {"steps": STEPS, "batch_size": 64},
        "run": {"liveness_seconds": 1.0},
    }
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 2)
        assert [worker.status().applied_steps for worker in fleet.workers] == [2] * 5


class SlowlyEvaluated(nn.Linear):
    """Takes longer for an evaluation batch, which has many micro-batches' samples, than a block may for one of these."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 16:  # not the few samples on which the model is tried
            time.sleep(2.6)
        return super().forward(x)


def slowly_evaluated() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), SlowlyEvaluated(64, 8), nn.ReLU(), SlowlyEvaluated(8, 10))


def test_an_evaluation_batch_has_the_time_of_its_size(tmp_path: Path) -> None:
    plain = {
        "model": {"factory": f"{__name__}:slowly_evaluated", "blocks": 2},
        "data": {"factory": "lowdimfa.data:digits"},
        "train": {"steps": STEPS, "batch_size": 256, "microbatches": 4},
        "run": {"liveness_seconds": 1.0},
    }
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 2)
        assert fleet.evaluate().loss > 0


def test_a_load_keeps_nothing_of_one_before_it(tmp_path: Path) -> None:
    """Also where no step lies between, and the second is of no checkpoint."""
    with thread_fleet(specification(blocks=2), tmp_path) as fleet:
        worker, shelf = fleet.workers[0], SnapshotShelf(1)
        drawn = copied(worker.stage.state())
        fleet.run(0, 2)
        shelf.offer(worker.stage, 2)
        snapshot = shelf.fetch(-1, 0)
        assert snapshot is not None
        worker.load(2, snapshot)
        worker.load(0, Checkpointed(None))
        assert_same_bits(worker.stage.state().tensors, drawn.tensors)
