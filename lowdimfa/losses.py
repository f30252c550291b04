"""Losses by name, and what an evaluation counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lowdimfa.data.base import Task
from lowdimfa.errors import InputError, in_words
from lowdimfa.imports import resolve

Loss = Callable[[Tensor, Tensor], Tensor]
"""A differentiable function of the head's output and the targets: the mean over the micro-batch, a scalar."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy in nats; ``logits (batch, *positions, classes)``, ``targets (batch, *positions)``."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of half the squared error; outputs and targets ``(batch, outputs)``."""
    return 0.5 * (outputs - targets.view_as(outputs)).square().sum(-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of the summed logistic losses, in nats; targets in [0, 1], shaped like the logits."""
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.view_as(logits).to(logits.dtype), reduction="none"
    )
    return losses.sum(-1).mean()


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mean_squared_error,
    "bce": binary_cross_entropy,
}
_DEFAULTS: dict[Task, str] = {
    "classification": "cross_entropy",
    "tokens": "cross_entropy",
    "regression": "mse",
}


def make_loss(name: str, task: Task) -> Loss:
    """Return the loss that a specification names: ``auto``, a name in `LOSSES`, or an import path.

    Raises
    ------
    InputError
        The name is none of these, or the import fails.
    """
    name = _DEFAULTS[task] if name == "auto" else name
    if name in LOSSES:
        return LOSSES[name]
    if "." not in name and ":" not in name:
        raise InputError("train.loss", repr(name), f"auto, {', '.join(LOSSES)}, or an import path")
    return resolve(name, "train.loss")


def shows_targets(name: str, task: Task) -> bool:
    """Return whether one output error tells the target: softmax minus one-hot, whose one negative number is at it."""
    return task != "regression" and (_DEFAULTS[task] if name == "auto" else name) == "cross_entropy"


def checked_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of a first batch, or say why outputs and targets don't go together.

    Raises
    ------
    InputError
        The loss fails, or isn't a scalar.
    """
    try:
        value = loss(outputs, targets)
    except (Exception, SystemExit) as error:  # a user's loss may fail in any way
        raise InputError(
            "train.loss",
            f"a loss that fails on outputs {tuple(outputs.shape)} ({outputs.dtype}) and targets "
            f"{tuple(targets.shape)} ({targets.dtype}): {in_words(error)}",
            "a model whose last layer fits the data's targets and the loss",
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        returned = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            "train.loss", f"a loss that returns {returned}", "a scalar tensor, the mean over the samples"
        )
    return value


def count_correct(outputs: Tensor, targets: Tensor, task: Task) -> tuple[int, int]:
    """Return how many predictions are right and how many there are; ``(0, 0)`` where there is no accuracy."""
    right, counted = right_predictions(outputs, targets, task)
    return int(right), counted


def right_predictions(outputs: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, int]:
    """Return the same as `count_correct`, the first as a scalar on the outputs' device, without waiting for it."""
    one_class_each = targets.shape == outputs.shape[:-1] and outputs.shape[-1] > 1
    if task == "regression" or targets.is_floating_point() or not one_class_each:
        return torch.zeros((), dtype=torch.int64, device=outputs.device), 0
    return (outputs.argmax(-1) == targets).sum(), targets.numel()


def validate_class_targets(targets: Tensor, classes: int) -> None:
    """Refuse class indices that the output has no room for, which the loss would report obscurely.

    Raises
    ------
    InputError
        A target is below 0 or not below ``classes``.
    """
    if targets.is_floating_point() or targets.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= classes:
        raise InputError(
            "model.args",
            f"an output of {classes} classes",
            f"room for the targets {low} to {high} of the data",
        )
