"""Models, data and losses of the user's own, beside the specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Outcome, refused
from forks import Forks

MODULE = """
import torch
from torch import nn
from my_package.sizes import FEATURES

def model(outputs):
    print("a library that talks")
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))

def _draw(target):
    inputs = torch.randn(256, FEATURES, generator=torch.Generator().manual_seed(1))
    targets = target(inputs)
    return inputs[:192], targets[:192], inputs[192:], targets[192:]

def prices():
    return _draw(lambda inputs: inputs.sum(1, keepdim=True))

def labels():
    return _draw(lambda inputs: (inputs[:, :3] > 0).float())

def tokens():
    inputs = torch.randint(5, (256, 7), generator=torch.Generator().manual_seed(1))
    targets = (inputs + 1) % 5
    return inputs[:192], targets[:192], inputs[192:], targets[192:]

def token_model():
    return nn.Sequential(nn.Embedding(5, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))

def absolute(outputs, targets):
    return (outputs - targets).abs().mean()

def sometimes_nan(outputs, targets):
    loss = (outputs - targets).square().mean()
    sometimes_nan.calls += 1
    return loss * float("nan") if sometimes_nan.calls > 19 else loss

sometimes_nan.calls = 0

def failing(outputs, targets):
    failing.calls += 1
    if failing.calls > 11:
        raise RuntimeError("the loss gave up")
    return absolute(outputs, targets)

failing.calls = 0
"""


def run(forks: Forks, folder: Path, data: str, loss: str, model: dict[str, Any], *arguments: str) -> Outcome:
    """Train with the functions of a package that lies beside the specification."""
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("FEATURES = 6\n")
    (package / "parts.py").write_text(MODULE)
    specification = {
        "model": {"blocks": 3} | model,
        "data": {"factory": f"my_package.parts:{data}"},
        "train": {
            "epochs": 5,
            "batch_size": 32,
            "loss": loss,
            "log_every": 1,
            "optimizer": {"args": {"lr": 0.02}},
        },
        "run": {"checkpoint_every": 4},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(specification))
    common = ("--engine", "local", "--format", "json", "--run-dir", folder / "run", *arguments)
    return forks.run("train", folder / "spec.yaml", *common)


def plain(outputs: int) -> dict[str, Any]:
    return {"factory": "my_package.parts:model", "args": {"outputs": outputs}}


@pytest.mark.parametrize(
    ("data", "loss", "model", "counts"),
    [
        ("prices", "auto", plain(1), False),
        ("prices", "my_package.parts:absolute", plain(1), False),
        ("labels", "bce", plain(3), False),
        ("tokens", "auto", {"factory": "my_package.parts:token_model"}, True),
    ],
)
def test_each_kind_of_task_trains(
    data: str, loss: str, model: dict[str, Any], counts: bool, forks: Forks, tmp_path: Path
) -> None:
    outcome = run(forks, tmp_path, data, loss, model)
    assert outcome.code == 0, outcome
    losses = [event["loss"] for event in outcome.of("progress")]
    assert losses[-1] < losses[0]
    assert (outcome.events[-1]["test_accuracy"] is not None) == counts
    (evaluated,) = forks.run("evaluate", tmp_path / "run", "--format", "json").events
    assert evaluated["test_loss"] == outcome.events[-1]["test_loss"]


def test_a_loss_that_becomes_nan_stops_the_run(forks: Forks, tmp_path: Path) -> None:
    outcome = run(forks, tmp_path, "prices", "my_package.parts:sometimes_nan", plain(1))
    assert outcome.code == 3
    assert "is not finite at step 7 in the head (block 2)" in outcome.stderr
    assert (outcome.events[-1]["block"], outcome.events[-1]["step"]) == (2, 7)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    good = ("train", tmp_path / "spec.yaml", "--engine", "local", "--run-dir", tmp_path / "run", "--resume")
    assert forks.run(*good, "--set", "train.loss=my_package.parts:absolute").code == 0


def test_a_loss_that_fails_is_one_message(forks: Forks, tmp_path: Path) -> None:
    outcome = run(forks, tmp_path, "prices", "my_package.parts:failing", plain(1))
    assert (outcome.code, outcome.events[-1]["code"], outcome.events[-1]["exit_code"]) == (1, "internal", 1)
    assert "the loss gave up" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "parts.py" in (tmp_path / "run" / "traceback.txt").read_text()


def test_a_loss_on_other_shapes_is_refused(forks: Forks, tmp_path: Path) -> None:
    refused(
        _without_chatter(run(forks, tmp_path, "labels", "bce", plain(4))), "train.loss", "(2, 4)", "(2, 3)"
    )
    assert not (tmp_path / "run").exists()


def _without_chatter(outcome: Outcome) -> Outcome:
    return Outcome(outcome.code, outcome.stdout, outcome.stderr.replace("a library that talks\n", ""))
