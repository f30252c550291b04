"""The moving average of weights: torch's, in checkpoints, in evaluations and in what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typer.testing import CliRunner

from lowdimfa import sparse
from lowdimfa.errors import InputError
from lowdimfa.models import mlp
from lowdimfa.network import DecoupledNetwork, StepResult
from lowdimfa.services.cli.app import app
from lowdimfa.services.run import in_turn, large
from lowdimfa.services.run.best import load_best
from lowdimfa.services.run.checkpoint import CheckpointStore, export_file, export_state
from lowdimfa.services.run.data import load_dataset
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run

DECAY = 0.9


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).bfloat16()


def narrow() -> nn.Sequential:
    return nn.Sequential(Narrow(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).bfloat16()


SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 16, "depth": 3, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {
        "steps": 20,
        "batch_size": 32,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.01}},
        "average": {"decay": DECAY},
    },
    "run": {"tensorboard": False, "timeline": False, "evaluate_every_epochs": 0, "checkpoint_every": 10},
}


def with_(**train: Any) -> dict[str, Any]:
    return SPECIFICATION | {"train": SPECIFICATION["train"] | train}


def fit(path: Path, specification: dict[str, Any] = SPECIFICATION, **options: Any) -> dict[str, torch.Tensor]:
    """Run in this process and return the averages at the end."""
    DecoupledTrainer(specification, engine="local", run_dir=path, **options).fit()
    return export_state(CheckpointStore(path).load(None), average=True)


@pytest.mark.parametrize("form", ["broadcast", "backprop", "local", "frozen"])
def test_it_is_torchs_average_of_the_weights_after_every_step_in_every_form(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courses: dict[DecoupledNetwork, AveragedModel] = {}  # the rehearsal has a network of its own
    plain = DecoupledNetwork.train_step

    def followed(network: DecoupledNetwork, *arguments: Any, **others: Any) -> StepResult:
        result = plain(network, *arguments, **others)
        model = mlp(**SPECIFICATION["model"]["args"])
        model.load_state_dict(network.state_dict())
        if network not in courses:
            courses[network] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        courses[network].update_parameters(model)
        return result

    monkeypatch.setattr(DecoupledNetwork, "train_step", followed)
    found = fit(tmp_path / "run", SPECIFICATION | {"feedback": {"form": form}})
    expected = list(courses.values())[-1].module.state_dict()
    weights = export_state(CheckpointStore(tmp_path / "run").load(None))
    assert found.keys() == expected.keys() == weights.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], weights[name]) for name in expected)


def test_training_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    fit(tmp_path / "with")
    DecoupledTrainer(with_(average=None), engine="local", run_dir=tmp_path / "without").fit()
    ours, theirs = (export_state(CheckpointStore(tmp_path / name).load(None)) for name in ("with", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match=r"--average.*train\.average"):
        export_file(CheckpointStore(tmp_path / "without").load(None), tmp_path / "out", average=True)


@pytest.mark.parametrize("frozen", [[], ["0.*"]])
def test_evaluations_and_exports_have_it(frozen: list[str], tmp_path: Path) -> None:
    specification = SPECIFICATION | {"model": SPECIFICATION["model"] | {"frozen": frozen}}
    result = DecoupledTrainer(specification, engine="local", run_dir=tmp_path / "run").fit()
    averages = export_state(CheckpointStore(tmp_path / "run").load(None), average=True)
    test = load_dataset(parse_specification(SPECIFICATION, "test")).test
    everything = torch.arange(len(test))
    model = mlp(**SPECIFICATION["model"]["args"])
    model.load_state_dict(averages)
    outputs = model.eval()(test.inputs(everything)).detach()
    assert torch.equal(result.model(average=True)(test.inputs(everything)), outputs)
    loss = torch.nn.functional.cross_entropy(outputs, test.targets(everything))
    assert evaluate_run(tmp_path / "run")["test_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_averages_of_narrow_weights_move(tmp_path: Path) -> None:
    """By less than such a weight can: they are kept in a wider type, and cast where they are used."""
    decay = 0.9999
    given = with_(average={"decay": decay}) | {
        "model": {"factory": f"{Path(__file__).stem}:narrow", "blocks": 2},
        "run": SPECIFICATION["run"] | {"checkpoint_every": 1, "keep": 20},
    }
    found = fit(tmp_path / "run", given)
    store = CheckpointStore(tmp_path / "run")
    first, *others = (export_state(store.load(step)) for step in range(1, 21))
    for name, expected in first.items():
        expected = expected.float()
        for weights in others:
            expected = expected.lerp(weights[name].float(), 1 - decay)
        torch.testing.assert_close(found[name], expected)
        assert not torch.equal(found[name], first[name].float())
    export_file(store.load(None), tmp_path / "exported", average=True)
    exported = load_file(tmp_path / "exported")
    assert all(torch.equal(exported[name], value.bfloat16()) for name, value in found.items())
    model = narrow()
    model.load_state_dict(exported)
    test = load_dataset(parse_specification(SPECIFICATION, "test")).test
    outputs = model(test.inputs(torch.arange(len(test)))).detach().float()
    loss = nn.functional.cross_entropy(outputs, test.targets(torch.arange(len(test))))
    assert evaluate_run(tmp_path / "run")["test_loss"] == pytest.approx(float(loss), rel=1e-3)
    again = fit(tmp_path / "run", given, resume_step=10)
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_a_resumed_run_has_the_bits_of_one_that_was_never_interrupted(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    again = fit(tmp_path / "whole", resume_step=10)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_it_may_begin_with_a_resumed_part(tmp_path: Path) -> None:
    """Then it is the average since: after one step, the weights."""
    DecoupledTrainer(with_(average=None, steps=10), engine="local", run_dir=tmp_path / "run").fit()
    averages = fit(tmp_path / "run", with_(steps=11), resume=True)
    weights = export_state(CheckpointStore(tmp_path / "run").load(None))
    assert all(torch.equal(averages[name], weights[name]) for name in weights)


def test_a_network_that_no_process_holds_can_be_planned_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(sparse, "SMALLEST", 64)
    monkeypatch.setattr(in_turn, "PIECE", 0)
    parsed = parse_specification(SPECIFICATION, "test")
    ours, theirs = make_run_plan(parsed, whole=False), make_run_plan(parsed)
    assert ours.network.outline is not None and ours.describe() == theirs.describe()


def test_a_block_that_had_nothing_to_learn_lets_none_begin_anew(tmp_path: Path) -> None:
    """Merged with one that learns when the run is resumed, whose average goes on."""

    def cut(blocks: list[str], **train: Any) -> dict[str, Any]:
        model = SPECIFICATION["model"] | {"frozen": ["0.*"], "blocks": blocks}
        return with_(**train) | {"model": model}

    fit(tmp_path / "run", cut(["1", "2"], steps=10))
    before = CheckpointStore(tmp_path / "run").load(10).tensors(lambda name: name.startswith("average/"))
    fit(tmp_path / "run", cut(["2"], steps=11), resume=True)
    newest = CheckpointStore(tmp_path / "run").load(11)
    after = newest.tensors(lambda name: name.startswith("average/"))
    for name, value in export_state(newest).items():
        if (kept := f"average/{name}") in before:
            assert torch.allclose(after[kept], DECAY * before[kept] + (1 - DECAY) * value)


def test_what_learns_from_a_resume_on_begins_with_its_weight_and_the_rest_goes_on(tmp_path: Path) -> None:
    model = SPECIFICATION["model"] | {"blocks": ["2"]}
    fit(tmp_path / "run", SPECIFICATION | {"model": model | {"frozen": ["1.*"]}})
    before = export_state(CheckpointStore(tmp_path / "run").load(None), average=True)
    weights = export_state(CheckpointStore(tmp_path / "run").load(None))
    frozen = {name for name, value in before.items() if torch.equal(value, weights[name])}
    assert {name.partition(".")[0] for name in before if name not in frozen} == {"0", "2"}
    fit(tmp_path / "run", with_(steps=21) | {"model": model}, resume=True)
    after = export_state(CheckpointStore(tmp_path / "run").load(None), average=True)
    now = export_state(CheckpointStore(tmp_path / "run").load(None))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value.lerp(now[name], 1 - DECAY))
    assert frozen and not any(torch.equal(now[name], weights[name]) for name in frozen)


def test_the_commands_take_the_best_checkpoint_and_the_average_where_they_are_told_to(tmp_path: Path) -> None:
    """The best one is the first of two here, as the test loss is to be high."""
    run, best = tmp_path / "run", {"metric": "test_loss", "mode": "max"}
    specification = with_(steps=8, batch_size=375) | {
        "run": SPECIFICATION["run"] | {"evaluate_every_epochs": 1, "keep_best": best}
    }
    DecoupledTrainer(specification, engine="local", run_dir=run).fit()
    store = CheckpointStore(run)
    newest, chosen = store.load(None), load_best(store)
    assert (newest.step, chosen.step) == (8, 4)

    def told(*words: str) -> str:
        result = CliRunner().invoke(app, [*words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    for options, manifest in (((), newest), (("--best",), chosen)):
        for average in ((), ("--average",)):
            file = tmp_path / "model.safetensors"
            said = told("export", str(run), "--output", str(file), *options, *average)
            assert said.startswith(f"step {manifest.step} of ")
            found, expected = load_file(file), export_state(manifest, average=bool(average))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        loss = evaluate_run(run, bool(options))["test_loss"]
        assert f"step {manifest.step}: test loss {loss:.4f}" in told("evaluate", str(run), *options)
