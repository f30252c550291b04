"""Data that aren't what they seem: other test targets than training targets, other samples in a run that is resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, TensorDataset
from typer.testing import CliRunner

from lowdimfa.data import BatchOrder, Dataset, Reader, TensorSplit
from lowdimfa.data.workers import Ahead, WorkerReader
from lowdimfa.errors import InputError
from lowdimfa.models import mlp
from lowdimfa.services.cli.app import app
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.notes import notes
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run
from lowdimfa.tickets import Ticket

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 3
NUMBERS = INPUTS.sum(1)


def parts(train: str, test: str, order: int = 0) -> tuple[Tensor, ...]:
    """Return data with targets of two kinds, and in one of some orders that a listing might have."""
    kinds = {
        "classes": CLASSES,
        "column of classes": CLASSES[:, None],
        "one-hot": torch.eye(3)[CLASSES],
        "numbers": NUMBERS,
        "column": NUMBERS[:, None],
        "three": NUMBERS[:, None].repeat(1, 3),
    }
    listed = torch.arange(40).roll(order)
    return INPUTS[listed], kinds[train][listed], INPUTS, kinds[test]


class Short(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream of 40 samples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(INPUTS, NUMBERS[:, None], strict=True)


def short() -> tuple[Short, Short]:
    """Return a stream as training and test samples."""
    return Short(), Short()


def specification(factory: str = "parts", classes: int = 1, **args: Any) -> dict[str, Any]:
    width = {"in_features": 6, "width": 8, "depth": 2, "classes": classes}
    return {
        "model": {"factory": "lowdimfa.models:mlp", "args": width, "blocks": 2},
        "data": {"factory": f"test_unlike_data:{factory}", "args": args},
        "train": {"steps": 4, "batch_size": 8},
        "run": {"checkpoint_every": 2},
    }


@pytest.mark.parametrize(
    ("train", "test", "classes", "words"),
    [
        ("column", "numbers", 1, r"a target of shape \[\] for a test sample; expected \[1\]"),
        ("classes", "column of classes", 3, r"a target of shape \[1\] for a test sample; expected \[\]"),
        ("three", "column", 3, r"a target of shape \[1\] for a test sample; expected \[3\]"),
        ("classes", "one-hot", 3, ""),
    ],
)
def test_test_targets_of_another_shape_are_refused_before_training(
    train: str, test: str, classes: int, words: str
) -> None:
    """A loss may broadcast them, and every evaluation would be another one than was meant."""
    plain = specification(classes=classes, train=train, test=test)
    with pytest.raises(InputError, match=rf"^data\.factory: found {words}"):
        make_run_plan(parse_specification(plain, "test"))


def in_order(kind: str) -> Any:
    """Return data that are sorted by class, or shuffled."""
    places = torch.arange(40) if kind == "shuffled" else CLASSES.argsort()
    samples = INPUTS[places], CLASSES[places]
    return (TensorDataset(*samples), TensorDataset(*samples)) if kind == "items" else (*samples, *samples)


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (
            "tensors",
            {"limit_samples": 20},
            "train.limit_samples keeps the first .* of the classes 2: shuffle",
        ),
        (
            "items",
            {"limit_samples": 10},
            "train.limit_samples keeps the first .* of the classes 1, 2: shuffle",
        ),
        ("items", {"validation": 0.4}, "data.validation holds out the last .* of the classes 2: shuffle"),
        ("shuffled", {"limit_samples": 20}, ""),
        ("tensors", {}, ""),
    ],
)
def test_classes_that_are_only_tested_are_told(kind: str, settings: dict[str, Any], told: str) -> None:
    plain = specification("in_order", classes=3, kind=kind)
    for key, value in settings.items():
        plain["data" if key == "validation" else "train"][key] = value
    found = [note for note in notes(make_run_plan(parse_specification(plain, "test"))) if "shuffle" in note]
    assert len(found) == bool(told) and all(re.match(told, note) for note in found)


def test_a_short_stream_of_numbers_is_found_before_training_too() -> None:
    plain = specification("short")
    plain["train"] |= {"steps_per_epoch": 6, "steps": 12}
    with pytest.raises(InputError, match=r"a stream that ended after 40 samples of epoch 1; expected 48"):
        make_run_plan(parse_specification(plain, "test"))


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    for kind, classes in (("column", 1), ("classes", 3)):
        plain = specification(classes=classes, train=kind, test=kind)
        run_dir = tmp_path / kind
        DecoupledTrainer(plain, engine="local", run_dir=run_dir).fit()
        other = specification(classes=classes, train=kind, test=kind, order=1)
        with pytest.raises(
            InputError, match=r"^data\.factory: found other training or test samples, or in another order"
        ):
            DecoupledTrainer(other, engine="local", run_dir=run_dir, resume_step=2).fit()
        DecoupledTrainer(plain, engine="local", run_dir=run_dir, resume_step=2).fit()


class Broken(TensorSplit):
    """A split of the user's own with a defect."""

    def inputs(self, indices: Tensor) -> Any:
        raise RuntimeError("shape '[3, 4]' is invalid")


def test_workers_are_not_blamed_for_what_the_data_raise() -> None:
    split = Broken(INPUTS, CLASSES)
    reader = Reader(Dataset("broken", split, split, "classification"), BatchOrder(40, 8, 1, seed=0))
    ahead = WorkerReader(reader, Ahead(lambda: reader, workers=1, prefetch=1, steps=1))
    with pytest.raises(RuntimeError, match="is invalid"):
        ahead.microbatch(Ticket(0, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_test_split_that_was_kept_away_is_measured_when_it_is_asked_for(
    workers: int, tmp_path: Path
) -> None:
    plain = specification(classes=3, train="classes", test="classes")
    plain["data"] |= {"validation": 0.2, "workers": workers}
    done = DecoupledTrainer(plain, engine="local", run_dir=tmp_path / "run").fit().metrics
    as_the_run, test = evaluate_run(tmp_path / "run"), evaluate_run(tmp_path / "run", test=True)
    assert as_the_run["test_loss"] == done["test_loss"]
    assert (as_the_run["split"], as_the_run["samples"]) == ("validation", 8)
    assert (test["split"], test["samples"]) == ("test", 40)
    model = mlp(6, 8, 2, 3)
    model.load_state_dict(export_state(CheckpointStore(tmp_path / "run").load(None)))
    assert test["test_loss"] == pytest.approx(cross_entropy(model(INPUTS), CLASSES).item(), rel=1e-5)
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")], catch_exceptions=False).output
    assert "(8 training samples that data.validation held out)" in shown
    shown = (
        CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--test"], catch_exceptions=False).output
    )
    assert "(40 samples)" in shown
