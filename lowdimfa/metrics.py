"""Metrics of the user's own over a whole evaluation: classes like those of torchmetrics, and plain functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lowdimfa.config import FactoryConfig
from lowdimfa.data.extra import package
from lowdimfa.errors import InputError, in_words
from lowdimfa.imports import call_factory, resolve
from lowdimfa.losses import precise

Measured = dict[str, float | list[float | None] | None]
"""By name a number, or one for each class; None for what isn't finite."""


class Metric(Protocol):
    """What is computed of all samples at once, as torchmetrics has it."""

    def reset(self) -> None:
        """Begin anew."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""

    def compute(self) -> Any:
        """Return the value over all batches since the beginning."""


class Mean:
    """The mean of a function over the samples.

    Parameters
    ----------
    function
        Takes outputs and targets and returns a number or a vector: the mean over these samples.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._sum = torch.zeros(())
        self._samples = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        value = torch.as_tensor(self._function(outputs, targets)).detach().double()
        if self._samples and value.shape != self._sum.shape:
            shapes = f"{tuple(value.shape)} after {tuple(self._sum.shape)}"
            raise ValueError(f"its shape is {shapes}: the mean over the samples has the same for every batch")
        self._sum = self._sum + len(targets) * value
        self._samples += len(targets)

    def compute(self) -> Tensor:
        """Return the mean over all samples since the beginning."""
        return self._sum / max(self._samples, 1)


class Metrics:
    """The metrics of a run.

    Where each position has one class as its target, metrics see one row for each position that counts: outputs ``(n,
    classes)``, at least in single precision, and targets ``(n,)``. Otherwise they see outputs and targets as they are.

    Parameters
    ----------
    configs
        By name.
    device
        Where outputs and targets will be.

    Raises
    ------
    InputError
        A class or function can't be imported, a class doesn't take its arguments, or isn't a metric's.
    """

    def __init__(self, configs: Mapping[str, FactoryConfig], device: torch.device | None = None) -> None:
        self._metrics = {name: _made(config, _key(name), device) for name, config in configs.items()}
        self._seen = 0

    @torch.no_grad()
    def reset(self) -> None:
        """Begin an evaluation."""
        self._seen = 0
        for name, metric in self._metrics.items():
            with _trying(name, "when it is reset"):
                metric.reset()

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor, counted: Tensor | None) -> None:
        """Take in a batch; ``counted`` says which of the targets count, None that all do.

        Raises
        ------
        InputError
            A metric can't take it.
        """
        if not self._metrics:
            return
        outputs = precise(outputs.detach())
        if not targets.is_floating_point() and targets.shape == outputs.shape[:-1]:
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
            if counted is not None:
                outputs, targets = outputs[counted.flatten()], targets[counted.flatten()]
        if not len(targets):
            return
        self._seen += 1
        said = f"outputs {tuple(outputs.shape)} ({outputs.dtype}) and targets {tuple(targets.shape)} ({targets.dtype})"
        for name, metric in self._metrics.items():
            with _trying(name, f"on {said}"):
                metric.update(outputs.clone(), targets.clone())  # it may write to what it is given

    @torch.no_grad()
    def compute(self) -> Measured:
        """Return the values over the evaluation.

        Raises
        ------
        InputError
            A metric fails, or has something else than a number or a vector.
        """
        found: Measured = {}
        for name, metric in self._metrics.items() if self._seen else ():
            with _trying(name, "when it is computed"):
                value = metric.compute()
            found[name] = _plain(value, name)
        return found


def _key(name: str) -> str:
    return f"train.metrics.{name}"


_METHODS = ("reset", "update", "compute")


def is_metric(value: object) -> bool:
    """Return whether something is a metric's object, and no class or function."""
    return not inspect.isclass(value) and all(callable(getattr(value, name, None)) for name in _METHODS)


def _made(config: FactoryConfig, key: str, device: torch.device | None) -> Metric:
    if str(config.factory).startswith("torchmetrics"):
        package("torchmetrics", f"{key}.factory", "metrics")
    args = deepcopy(dict(config.args))
    target: Any = resolve(config.factory, f"{key}.factory")
    made: Any
    if is_metric(target):
        made = deepcopy(target)
        made.reset()  # of what it has seen elsewhere
    elif inspect.isclass(getattr(target, "func", target)):  # or a partial of one
        made = call_factory(target, args, f"{key}.factory")
    else:
        return Mean(partial(target, **args))
    if lacking := [name for name in _METHODS if not callable(getattr(made, name, None))]:
        found = f"{config.factory!r}, whose objects have no {' and no '.join(lacking)}"
        raise InputError(f"{key}.factory", found, "a class as torchmetrics has them, or a function")
    if device is not None and hasattr(made, "to"):
        made = made.to(device)
    return made  # type: ignore[no-any-return]


@contextmanager
def _trying(name: str, when: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:  # a user's metric may fail in any way
        expected = "one that takes outputs and targets of this model and data"
        raise InputError(_key(name), f"a metric that fails {when} ({in_words(error)})", expected) from error


def _plain(value: Any, name: str) -> float | list[float | None] | None:
    expected = "a number, or a vector with one for each class"
    try:
        found = torch.as_tensor(value).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(_key(name), f"a metric that is a {type(value).__name__}", expected) from error
    if found.dim() > 1:
        raise InputError(_key(name), f"a metric of shape {tuple(found.shape)}", expected)
    numbers = [number if math.isfinite(number) else None for number in found.reshape(-1).tolist()]
    return numbers if found.dim() else numbers[0]
