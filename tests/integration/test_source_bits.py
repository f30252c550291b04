"""The error of a hidden state, and the projection that travels with it: the same bits by every engine, resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from thread_fleet import thread_fleet

from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

STEPS = 8
PCA = {"error_dim": 5, "p_rule": "pca", "p_every": 3}


def in_process(plain: dict[str, Any], run_dir: Path, **options: Any) -> dict[str, torch.Tensor]:
    DecoupledTrainer(plain, engine="local", run_dir=run_dir, **options).fit()
    return export_state(CheckpointStore(run_dir).load(None))


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.parametrize(
    ("blocks", "feedback", "sections"),
    [
        (2, {"source": "head_input"}, {}),
        (3, {"source": "hidden"}, {"train": {"microbatches": 4, "window": 2}}),
        (3, {"source": "head_input", **PCA}, {}),
        (2, {"source": "hidden", **PCA, "every_layer": True}, {}),
        (3, {"source": "hidden", **PCA, "p_rule": "oja"}, {"train": {"activations": "bf16"}}),
        (3, {"source": "head_input", "q_rule": "probed"}, {}),
    ],
)
def test_same_bits_as_in_process(
    blocks: int, feedback: dict[str, Any], sections: dict[str, Any], tmp_path: Path
) -> None:
    plain = specification("transformer", blocks, "auto", **sections)
    plain["feedback"] |= feedback
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, 3)  # a segment's end changes nothing
        fleet.run(3, STEPS)
        found = fleet.model_state()
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.usefixtures("cluster")
def test_over_ray_too(tmp_path: Path) -> None:
    plain = specification("transformer", 3, "auto", feedback={"source": "head_input", **PCA})
    DecoupledTrainer(plain, engine="ray", run_dir=tmp_path / "ray").fit()
    found = export_state(CheckpointStore(tmp_path / "ray").load(None))
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


@pytest.mark.parametrize("chunk", [None, 50])
def test_what_does_not_count_and_a_loss_in_chunks_change_no_bit(chunk: int | None, tmp_path: Path) -> None:
    data = {"factory": "drawing:padded"}
    train = {"ignore_index": 0, "microbatches": 4, "loss_chunk": chunk}
    plain = specification("mlp", 3, "auto", data=data, train=train, feedback={"source": "hidden"})
    plain["model"] = {"factory": "drawing:tagger", "blocks": 3}
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, STEPS)
        found, evaluation = fleet.model_state(), fleet.evaluate()
    assert evaluation.counted > 0
    assert_same_bits(found, in_process(plain, tmp_path / "local"))


def test_the_projection_travels_when_it_has_changed_and_to_all_replicas(tmp_path: Path) -> None:
    plain = specification(
        "transformer",
        3,
        "auto",
        feedback={"source": "head_input", **PCA},
        train={"microbatches": 4},
        placement={"replicas": {0: 2, 1: 2}},
    )
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, STEPS)
        seats = [worker.stage for worker in fleet.workers]
        carried = fleet.workers[0].status().broadcast.payload_bytes
        rules = [site.feedback.weights for stage in seats[:-1] for site in stage.sites]
    assert len(rules) == 4
    assert all(torch.equal(rule, rules[0]) for rule in rules)
    # 4 tokens of 5 numbers per sample; P after the steps 1, 2, 3 and 6, with each of 4 micro-batches
    assert carried == 4 * (STEPS * 64 * 4 * 5 + 4 * 4 * 5 * 16)


def test_staleness_learns(tmp_path: Path) -> None:
    plain = specification(
        "transformer",
        3,
        "auto",
        feedback={"source": "head_input", **PCA},
        train={"staleness": 1, "steps": 60},
    )
    with thread_fleet(plain, tmp_path) as fleet:
        fleet.run(0, 60)
        evaluation = fleet.evaluate()
    assert evaluation.accuracy is not None and evaluation.accuracy > 0.4


def test_a_resumed_run_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    plain = specification("transformer", 3, "auto", feedback={"source": "hidden", **PCA})
    plain["run"] |= {"checkpoint_every": 4}
    expected = in_process(plain, tmp_path / "whole")
    DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "parts").fit()
    assert_same_bits(in_process(plain, tmp_path / "parts", resume_step=4), expected)
