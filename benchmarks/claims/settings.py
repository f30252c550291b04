"""Networks with their data and schedule, and how a budget changes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from benchmarks.claims.claim import RunSettings
from lowdimfa.data import Dataset, Split, SubSplit, cifar10, fashion_mnist, teacher
from lowdimfa.errors import InputError
from lowdimfa.models import cnn

WEIGHT_DECAY = 0.01
VALIDATION = 1 / 6
FEWEST_STEPS = 4
"""Optimiser steps in an epoch below which a run says nothing."""


@dataclass(frozen=True)
class Update:
    """What AdamW is given, for weights and feedback alike; feedback with a rate of its own has no decay."""

    rate: float
    weight_decay: float = WEIGHT_DECAY
    feedback_rate: float | None = None


ALIGNING = 3.0
"""A weight decay that makes learned feedback forget, within a short run, where it and the weights started."""
GRID = (Update(5e-4), Update(1e-3), Update(1e-3, ALIGNING))

DATA: dict[str, Callable[[], Dataset]] = {
    "CIFAR-10": cifar10,
    "Fashion-MNIST": fashion_mnist,
    "teacher": teacher,
}


@dataclass(frozen=True)
class Setting:
    """One network with its data and schedule.

    Attributes
    ----------
    label
        For tables and figures.
    model, arguments
        Factory in `lowdimfa.models`.
    data, classes
        Key of `DATA`, and how many of its classes are kept: the first so many.
    samples, epochs
        Training samples (the first so many that aren't held out) and passes over them.
    batch_size
        Samples of a step.
    grid
        Learning rates and weight decays that every method tries.
    grids
        What methods of some rules try instead, by rule: as many.
    is_augmented
        Whether images are cropped at random, out of 4 more pixels around, and flipped.
    large
        What a GPU runs instead.
    """

    label: str
    model: Callable[..., nn.Sequential]
    arguments: tuple[Any, ...]
    data: str
    samples: int
    epochs: int
    batch_size: int = 128
    grid: tuple[Update, ...] = GRID
    classes: int = 10
    grids: tuple[tuple[str, tuple[Update, ...]], ...] = ()
    is_augmented: bool = False
    large: Setting | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the samples."""
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of one run."""
        return self.epochs * self.steps_per_epoch

    def on(self, device: torch.device) -> Setting:
        """Return the setting for a device."""
        return self.large if device.type == "cuda" and self.large is not None else self

    def scaled(self, effort: float) -> Setting:
        """Return the setting with so many times the work: fewer samples below 1, more epochs above.

        Raises
        ------
        InputError
            So few samples are left that an epoch has less than `FEWEST_STEPS` steps.
        """
        if effort >= 1:
            return replace(self, epochs=round(self.epochs * effort))
        samples = math.floor(self.samples * effort)
        if samples < FEWEST_STEPS * self.batch_size:
            least = FEWEST_STEPS * self.batch_size / self.samples
            raise InputError(
                "--budget",
                f"minutes for {effort:.2g} of the samples of '{self.label}'",
                f"minutes for {least:.2g} of them, {FEWEST_STEPS} steps",
                "Give more minutes or fewer seeds.",
            )
        return replace(self, samples=samples)

    def network(self) -> nn.Sequential:
        """Return the network, drawn from torch's global generator; images keep their channels last, which is faster."""
        model = self.model(*self.arguments)
        if self.model is cnn:
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return model

    def dataset(self) -> Dataset:
        """Return the data, all training samples included."""
        return load_data(self.data, self.classes)

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        grids = {f"grid of {rule}": list(map(asdict, grid)) for rule, grid in self.grids}
        folder = "lowdimfa.models" if self.model.__module__.startswith("lowdimfa") else self.model.__module__
        return {
            "model": f"{folder}.{self.model.__name__}{self.arguments}",
            "data": self.data,
            "classes": self.classes,
            "samples": self.samples,
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "optimizer": "AdamW, for W and Q",
            "scheduler": "OneCycleLR, max_lr the rate",
            "grid": [asdict(update) for update in self.grid],
            **grids,
            **({"augmented": "random crops out of 4 more pixels, flips"} if self.is_augmented else {}),
            "validation": f"the last {VALIDATION:.4f} of the training split, first seed",
            "precision": "fp32",
            **({"memory_format": "channels last"} if self.model is cnn else {}),
        }


def effort(settings: RunSettings, minutes: float) -> float:
    """Return how many times a claim's own work fits the budget.

    Parameters
    ----------
    settings
        What was asked for. A method costs a run for each entry of the grid and one for every further seed.
    minutes
        What the claim takes on one core with three seeds.
    """
    if settings.budget_minutes is None:
        return 1.0
    trials = len(GRID) - 1 + settings.seeds
    usual = len(GRID) - 1 + RunSettings.seeds
    return settings.budget_minutes / minutes * usual / trials


@cache
def load_data(name: str, classes: int) -> Dataset:
    """Return a data set with only its first classes."""
    whole = DATA[name]()
    return Dataset(whole.name, _keep(whole.train, classes), _keep(whole.test, classes), whole.task)


def _keep(split: Split, classes: int) -> Split:
    targets = split.targets(torch.arange(len(split)))
    chosen = (targets < classes).nonzero().flatten()
    return split if len(chosen) == len(split) else SubSplit(split, chosen)
