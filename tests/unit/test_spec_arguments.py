"""Arguments of factories that come with torch and this project are known to be wrong before anything runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import lowdimfa.models
from lowdimfa.errors import InputError
from lowdimfa.services.spec.arguments import argument_refusals
from lowdimfa.services.spec.load import load_specification, parse_specification, parse_text, violations

MODEL = {"in_features": 64, "width": 8, "depth": 2, "classes": 10}
SCHEDULES = "torch.optim.lr_scheduler"


def plain(**sections: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "model": {"factory": "lowdimfa.models:mlp", "args": MODEL, "blocks": 2},
        "data": {"factory": "lowdimfa.data:digits"},
        "train": {"steps": 10},
    }
    return good | {key: good.get(key, {}) | value for key, value in sections.items()}


def message(**sections: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse_specification(plain(**sections), "spec.yaml")
    return caught.value.message


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model": {"args": {}}},
            "spec.yaml: model.args.in_features: found nothing; expected an integer, which lowdimfa.models:mlp needs.",
        ),
        (
            {"model": {"args": MODEL | {"widht": 3}}},
            "model.args.widht: found an argument that lowdimfa.models:mlp doesn't take; expected one of in_features, "
            "width, depth, classes. Did you mean 'width'?",
        ),
        ({"model": {"args": MODEL | {"width": 8.5}}}, "model.args.width: found 8.5; expected an integer."),
        ({"model": {"args": MODEL | {"width": True}}}, "model.args.width: found true; expected an integer."),
        (
            {"model": {"factory": "lowdimfa.models:mpl"}},
            "'lowdimfa.models:mpl', but lowdimfa.models has no such name; "
            "expected a factory. Did you mean 'mlp'?",
        ),
        ({"model": {"factory": "lowdimfa.model:mlp"}}, "but there is no such module"),
        (
            {"model": {"factory": "torch.nn.Liner"}},
            "model.factory: found 'torch.nn.Liner', but torch.nn has no such name",
        ),
        (
            {"data": {"args": {"sed": 1}}},
            "data.args.sed: found an argument that lowdimfa.data:digits doesn't take",
        ),
        (
            {"data": {"factory": "lowdimfa.data.teacher", "args": {"task": "classificaton"}}},
            "data.args.task: found the string 'classificaton'; expected 'classification', 'tokens' or 'regression'.",
        ),
        (
            {"train": {"optimizer": {"args": {"lr": "fast"}}}},
            "train.optimizer.args.lr: found the string 'fast'; expected a number.",
        ),
        (
            {"train": {"optimizer": {"args": {"lr": None}}}},
            "train.optimizer.args.lr: found null; expected a number.",
        ),
        (
            {"train": {"optimizer": {"args": {"lr": 0.1, "betas": [0.9]}}}},
            "train.optimizer.args.betas: found the list [0.9]; expected a list of 2.",
        ),
        (
            {"train": {"optimizer": {"factory": "torch.optim.SGD", "args": {"nesterov": "no"}}}},
            "train.optimizer.args.nesterov: found the string 'no'; expected true or false.",
        ),
        ({"train": {"optimizer": {"factory": "torch.optim.AdmW"}}}, "Did you mean 'AdamW'?"),
        (
            {"train": {"optimizer": {"factory": f"{SCHEDULES}.StepLR", "args": {"step_size": 3}}}},
            "train.optimizer.factory: found StepLR, which is no optimiser; expected an optimiser.",
        ),
        (
            {"train": {"scheduler": {"factory": "torch.optim.SGD"}}},
            "train.scheduler.factory: found SGD, which is no schedule",
        ),
        ({"train": {"scheduler": {"factory": f"{SCHEDULES}.ReduceLROnPlateau"}}}, "follows a measured loss"),
        (
            {"train": {"scheduler": {"factory": f"{SCHEDULES}.StepLR"}}},
            "train.scheduler.args.step_size: found nothing; expected an integer",
        ),
        (
            {
                "train": {
                    "scheduler": {"factory": f"{SCHEDULES}.StepLR", "args": {"step_size": 3, "optimizer": 1}}
                }
            },
            "train.scheduler.args.optimizer: found an argument that",
        ),
        (
            {
                "train": {
                    "scheduler": {"factory": f"{SCHEDULES}.LambdaLR", "args": {"lr_lambda": "lambda s: 1"}}
                }
            },
            "expected something that only Python can make. Name a factory of your own that makes it.",
        ),
        (
            {"train": {"per_block": {1: {"optimizer": {"args": {"lr": 0.1, "weight": 1}}}}}},
            "train.per_block.1.optimizer.args.weight: found an argument",
        ),
        ({"train": {"loss": "torch.nn.MSELoss"}}, "train.loss: found the class torch.nn.MSELoss"),
        ({"train": {"loss": "torch.nn.functional.mse_los"}}, "Did you mean 'mse_loss'?"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(sections: dict[str, Any], said: str) -> None:
    assert said in message(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"optimizer": {"args": {"lr": 1, "betas": [0.9, 0.99], "fused": None, "weight_decay": 0}}}},
        {"train": {"optimizer": {"factory": "torch.optim.Adafactor", "args": {"eps": [None, 0.001]}}}},
        {"train": {"scheduler": {"factory": f"{SCHEDULES}.OneCycleLR", "args": {"max_lr": 0.1}}}},
        {"train": {"scheduler": {"factory": f"{SCHEDULES}.OneCycleLR", "args": {"max_lr": [0.1]}}}},
        {"train": {"scheduler": {"factory": f"{SCHEDULES}.MultiStepLR", "args": {"milestones": [2, 4]}}}},
        {"train": {"loss": "torch.nn.functional.mse_loss"}},
        {"data": {"factory": "lowdimfa.data:shakespeare", "args": {"texts": ["a.txt"], "stride": None}}},
        # What is the user's own is for the cluster to try.
        {"model": {"factory": "nowhere:model", "args": {"any": "thing"}}},
        {"model": {"factory": "torchvision.models:resnet18", "args": {"any": "thing"}}},
        {"train": {"optimizer": {"factory": "mine.Adam", "args": {"lr": "fast"}}, "loss": "mine:loss"}},
    ],
)
def test_what_may_be_right_is_taken(sections: dict[str, Any]) -> None:
    parse_specification(plain(**sections), "spec.yaml")


def test_a_service_and_the_command_say_the_same(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "model: {factory: 'lowdimfa.models:mlp', blocks: 2,",
            "  args: {in_features: 64, widht: 8, depth: 2, classes: 10}}",
            "data: {factory: 'lowdimfa.data:digits'}",
            "train: {steps: 10, optimizer: {args: {lr: fast}}}",
        ]
    )
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_specification(tmp_path / "spec.yaml")
    fields = ["model.args.widht", "model.args.width", "train.optimizer.args.lr"]
    assert [field for field, _ in violations(text)] == fields
    for field, words in violations(text):
        assert f"{field}: {words}" in caught.value.message
    with pytest.raises(InputError, match=r"--set train\.optimizer\.args\.lr: found the string 'quick'"):
        parse_text(text.replace("widht", "width"), "spec.yaml", ["train.optimizer.args.lr=quick"])


def test_every_default_of_every_built_in_factory_is_taken() -> None:
    """A signature's own defaults are right, whatever its annotations say: written out they change nothing."""
    optimizers = {f"torch.optim.{name}": getattr(torch.optim, name) for name in torch.optim.__all__}
    schedules = {f"{SCHEDULES}.{name}": getattr(lr_scheduler, name) for name in lr_scheduler.__all__}
    for key, factories in (("optimizer", optimizers), ("scheduler", schedules)):
        for name, factory in factories.items():
            if not inspect.isclass(factory) or name.endswith(
                ("Optimizer", "ReduceLROnPlateau", "LRScheduler")
            ):
                continue
            args = {
                each.name: list(each.default) if isinstance(each.default, tuple) else each.default
                for each in inspect.signature(factory).parameters.values()
                if each.default is not each.empty
                and isinstance(each.default, bool | int | float | str | tuple | None)
            }
            given = plain(train={key: {"factory": name, "args": args}})
            wrong, _ = argument_refusals(parse_unchecked(given))
            assert all(refusal.found == "nothing" for refusal in wrong), (name, wrong)


def parse_unchecked(given: dict[str, Any]) -> Any:
    from lowdimfa.services.spec.schema import Specification

    return Specification.model_validate(given)


@pytest.mark.parametrize("name", lowdimfa.models.__all__)
def test_models_of_the_project_can_be_checked(name: str) -> None:
    parameters = inspect.signature(getattr(lowdimfa.models, name), eval_str=True).parameters.values()
    assert all(parameter.annotation is not parameter.empty for parameter in parameters)
