"""Inputs by name and named sets between blocks: the same bits on every engine."""

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


def named(
    model: str, blocks: int, q_rule: str = "hebbian", dropout: float = 0.0, **sections: Any
) -> dict[str, Any]:
    plain = specification("mlp", blocks, q_rule, **sections)
    plain["model"] = {"factory": f"named_layers:{model}", "args": {"dropout": dropout}, "blocks": blocks}
    plain["data"] = {"factory": "named_layers:sequences"}
    return plain


def fit(plain: dict[str, Any], run_dir: Path, engine: str, **options: Any) -> dict[str, torch.Tensor]:
    own = Path(__file__).parent
    DecoupledTrainer(plain, engine=engine, run_dir=run_dir, user_code=own, **options).fit()  # type: ignore[arg-type]
    return export_state(CheckpointStore(run_dir).load(None))


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "probes": {"q_rule": "probed"},
    "readout": {"q_rule": "readout"},
    "every layer": {"feedback": {"every_layer": True}},
    "bf16": {"train": {"activations": "bf16"}},
    "int4": {"train": {"activations": "int4"}},
    "autocast": {"train": {"precision": "bf16"}},
    "replicas": {
        "placement": {"replicas": {1: 2}},
        "train": {
            "microbatches": 4,
            "activations": {"rank": 2},
            "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 0.1, "momentum": 0.9}},
        },
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["masked", "sets"])
def test_same_bits_as_in_process(model: str, case: str, tmp_path: Path) -> None:
    plain = named(model, 3, **CASES[case])
    with thread_fleet(plain, tmp_path / "threads") as fleet:
        fleet.run(0, 3)
        fleet.run(3, STEPS)
        found, loss = fleet.model_state(), fleet.evaluate().loss
    local = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "local").fit()
    expected = export_state(CheckpointStore(tmp_path / "local").load(None))
    if case == "replicas":  # sums of replicas are in another order
        assert local.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())
        return
    assert local.metrics["test_loss"] == loss
    assert_same_bits(found, expected)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("model", "blocks"),
    [("sets", 3), *(pytest.param("masked", blocks, marks=pytest.mark.slow) for blocks in (2, 3))],
)
def test_same_bits_on_ray_with_dropout_also_resumed(model: str, blocks: int, tmp_path: Path) -> None:
    run = {"checkpoint_every": 4, "alignment_every": 4, "evaluate_every_epochs": 1}
    plain = named(model, blocks, "probed", dropout=0.2, run=run)
    seen: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    local, ray = (fit(plain, tmp_path / engine, engine, on_event=seen[engine].append) for engine in seen)
    assert_same_bits(ray, local)
    assert_same_bits(fit(plain, tmp_path / "ray", "ray", resume_step=4), local)
    measured = {
        engine: [{**event, "time": 0} for event in events if event["event"] in ("alignment", "evaluation")]
        for engine, events in seen.items()
    }
    assert measured["ray"] == measured["local"] != []
