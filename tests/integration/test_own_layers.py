"""Workers that have memory for their own layers alone: the same bits as where every process holds the network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from specifications import specification
from test_named import named
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa import sparse
from lowdimfa.errors import InputError
from lowdimfa.partitioning import BlockPlan
from lowdimfa.services.block.building import build_stage, draw_data, make_topology
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.run import in_turn, large
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.manifest import export_file
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.state import load_stage
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.execute import prepare
from lowdimfa.services.trainer.request import RunRequest

STEPS = 6


@pytest.fixture(autouse=True)
def no_process_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every network for a large one."""
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(sparse, "SMALLEST", 64)
    monkeypatch.setattr(in_turn, "PIECE", 0)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("q_rule", ["probed", "readout"])
def test_same_bits_as_where_every_process_holds_the_network(model: str, q_rule: str, tmp_path: Path) -> None:
    plain = specification(model, 3, q_rule)
    plain["model"]["args"] = {**plain["model"]["args"]} | ({"dropout": 0.0} if model == "cnn" else {})
    assert_alike(plain, tmp_path)


@pytest.mark.parametrize("model", ["masked", "sets"])
def test_same_bits_with_inputs_and_tensors_by_name(model: str, tmp_path: Path) -> None:
    assert_alike(named(model, 3, "probed"), tmp_path)


@pytest.mark.parametrize("pattern", ["0.*", "1.*"])
def test_same_bits_with_a_block_that_is_frozen(pattern: str, tmp_path: Path) -> None:
    plain = specification("transformer", 4, "hebbian")
    plain["model"] |= {"frozen": [pattern]}
    assert_alike(plain, tmp_path)


@pytest.mark.parametrize("source", ["head_input", "hidden"])
def test_same_bits_with_the_error_of_a_hidden_state(source: str, tmp_path: Path) -> None:
    feedback = {"source": source, "error_dim": 4, "p_rule": "pca", "p_every": 2}
    plain = specification("transformer", 3, "hebbian") | {"feedback": feedback}
    assert_alike(plain, tmp_path)


def test_same_bits_from_weights_of_a_file(tmp_path: Path) -> None:
    plain = specification("transformer", 3)
    other = plain | {"train": plain["train"] | {"seed": 5}}
    DecoupledTrainer(other, engine="local", run_dir=tmp_path / "other").fit()
    export_file(CheckpointStore(tmp_path / "other").load(None), tmp_path / "weights.safetensors")
    plain["model"] |= {"weights": str(tmp_path / "weights.safetensors")}
    before = assert_alike(plain, tmp_path)
    trained = export_state(CheckpointStore(tmp_path / "other").load(None))
    assert all(torch.equal(before[name], value) for name, value in trained.items())


def assert_alike(plain: dict[str, Any], tmp_path: Path) -> dict[str, torch.Tensor]:
    """Compare both ways of holding a network, and return what they begin with."""
    found = []
    for whole in (True, False):
        with thread_fleet(plain, tmp_path / str(whole), kind=partial(ThreadFleet, whole=whole)) as fleet:
            before = fleet.model_state()
            fleet.run(0, STEPS)
            found.append((before, fleet.model_state()))
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    before, after = found[0]
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    return before


@pytest.mark.parametrize("blocks", [3, 2])
def test_a_block_resumes_from_its_own_tensors(blocks: int, tmp_path: Path) -> None:
    plain = specification("transformer", 3)
    DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "run").fit()
    plain = specification("transformer", blocks)
    request = RunRequest(
        parse_specification(plain, "test").model_dump(), str(tmp_path / "run"), "ray", True, UserCode()
    )
    plan, manifest, _ = prepare(request)
    assert plan.network.outline is not None and manifest is not None and manifest.step == 8
    saved = export_state(manifest)
    for seat in make_topology(plan.specification, plan.network).seats:
        job = BlockJob.of(plan, seat, "run", request.run_dir, UserCode())
        network = job.network()
        stage = build_stage(job, network, draw_data(job, network))
        load_stage(stage, manifest)
        for name, value in stage.module.plain_state_dict().items():
            assert torch.equal(value, saved[name])


def test_another_factory_than_the_trainers_is_refused(tmp_path: Path) -> None:
    plan = make_run_plan(parse_specification(specification("transformer", 3), "test"), whole=False)
    seat = make_topology(plan.specification, plan.network).seats[1]
    job = BlockJob.of(plan, seat, "run", str(tmp_path), UserCode())
    deeper = specification("transformer", 3)
    deeper["model"]["args"] = deeper["model"]["args"] | {"depth": 4}
    other = replace(job, specification=parse_specification(deeper, "test").model_dump())
    with pytest.raises(InputError, match=r"^model\.factory: .*builds"):
        other.network()


def test_a_job_has_shapes_and_no_weights(tmp_path: Path) -> None:
    with thread_fleet(
        specification("transformer", 3), tmp_path, connect=False, kind=partial(ThreadFleet, whole=False)
    ) as fleet:
        for worker in fleet.workers:
            assert worker.job.shapes is not None and worker.job.share is not None
            assert not any(map(held, worker.job.shapes.blocks))
            others = [block for block in worker.job.network().blocks if block.index != worker.job.index]
            assert not any(map(held, others))


def held(block: BlockPlan) -> int:
    """Return the values for which a block has memory."""
    return sum(parameter.numel() for parameter in block.build().parameters())
