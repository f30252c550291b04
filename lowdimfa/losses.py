"""Losses by name, and what an evaluation counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.imports import resolve

Loss = Callable[[Tensor, Tensor], Tensor]
"""A differentiable function of the head's output and the targets: the mean over the micro-batch, a scalar."""


IGNORED = -100
"""The class that by default says that a position doesn't count, as in torch."""


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Softmax cross-entropy in nats; ``logits (batch, *positions, classes)``, ``targets (batch, *positions)``.

    Raises
    ------
    InputError
        A target is no class that the logits have room for.
    """
    try:
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)
    except IndexError:
        validate_class_targets(targets, logits.shape[-1], ignore_index)
        raise


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of half the squared error; outputs and targets ``(batch, outputs)``."""
    return 0.5 * (outputs - _shaped(targets, outputs)).square().sum(-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of the summed logistic losses, in nats; targets in [0, 1], shaped like the logits."""
    losses = functional.binary_cross_entropy_with_logits(
        logits, _shaped(targets, logits).to(logits.dtype), reduction="none"
    )
    return losses.sum(-1).mean()


def _shaped(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the targets in the outputs' shape, of which they may leave out a last dimension of 1."""
    if (*targets.shape, 1) == tuple(outputs.shape):
        return targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ValueError("they have different shapes")
    return targets


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


def make_loss(name: str, task: Task, ignore_index: int = IGNORED) -> Loss:
    """Return the loss that a specification names: ``auto``, a name in `LOSSES`, or an import path.

    Raises
    ------
    InputError
        The name is none of these, the import fails, or ``ignore_index`` was given for a loss that knows no classes.
    """
    name = _DEFAULTS[task] if name == "auto" else name
    if name == "cross_entropy":
        return partial(cross_entropy, ignore_index=ignore_index)
    if name in LOSSES:
        if ignore_index != IGNORED:
            expected = "it with cross_entropy, or with a loss of your own that leaves out the same class"
            raise InputError("train.ignore_index", f"{ignore_index} with the loss {name!r}", expected)
        return LOSSES[name]
    if "." not in name and ":" not in name:
        raise InputError("train.loss", repr(name), f"auto, {', '.join(LOSSES)}, or an import path")
    return resolve(name, "train.loss")


def counts(name: str, task: Task, ignore_index: int) -> Callable[[Tensor], Tensor | None]:
    """Return which of the targets a loss counts, as booleans, or None for all: what is ignored counts nowhere else."""
    ignores = (_DEFAULTS[task] if name == "auto" else name) not in ("mse", "bce")
    return partial(_counted, ignore_index) if ignores else lambda targets: None


def _counted(ignore_index: int, targets: Tensor) -> Tensor | None:
    return None if targets.is_floating_point() else targets != ignore_index


def shows_targets(name: str, task: Task) -> bool:
    """Return whether one output error tells the target: softmax minus one-hot, whose one negative number is at it."""
    return task != "regression" and (_DEFAULTS[task] if name == "auto" else name) == "cross_entropy"


def checked_loss(loss: Loss, outputs: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the loss of a first batch, or say why outputs and targets don't go together.

    Parameters
    ----------
    loss, outputs, targets
        Of the batch.
    counted
        Which of the targets count; None for all.

    Raises
    ------
    InputError
        The loss fails, isn't a scalar or doesn't depend on the outputs, writes to what it is given, or compares one
        sample's output with another's target, because shapes are broadcast.
    """
    outputs = outputs.detach().requires_grad_()
    shapes = f"outputs {tuple(outputs.shape)} ({outputs.dtype}) and targets {tuple(targets.shape)} ({targets.dtype})"
    expected = "a model whose last layer fits the data's targets and the loss"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch's, where shapes are broadcast
            value = _left_as_they_are(loss, outputs, targets)
    except InputError:
        raise
    except Exception as error:  # a user's loss may fail in any way
        raise InputError("train.loss", f"a loss that fails on {shapes}: {error}", expected) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        returned = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            "train.loss", f"a loss that returns {returned}", "a scalar tensor, the mean over the samples"
        )
    if not value.requires_grad:
        raise InputError("train.loss", "a loss that doesn't depend on the outputs", "a differentiable loss")
    if _mixes_samples(loss, outputs, targets, value, counted):
        found = f"a loss that compares the output of one sample with the targets of others, on {shapes}"
        raise InputError(
            "train.loss", found, "outputs and targets of one shape", "Other shapes are broadcast."
        )
    return value.detach()


def _left_as_they_are(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss, or refuse it if it writes to what it is given."""
    given = {"outputs": outputs, "targets": targets}
    before = {what: (value._version, value.detach().clone()) for what, value in given.items()}
    written = None
    try:
        result = loss(outputs, targets)
        for what, (version, values) in before.items():
            if given[what]._version != version or not torch.equal(given[what], values):
                written = what
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        written = "outputs"
    if written is None:
        return result
    raise InputError(
        "train.loss",
        f"a loss that writes to the {written} in place",
        "one that leaves them as they are",
        f"Let it work on a copy, {written}.clone(), or with operations that make new tensors.",
    )


def _mixes_samples(
    loss: Loss, outputs: Tensor, targets: Tensor, value: Tensor, counted: Tensor | None
) -> bool:
    """Return whether the first sample's gradient depends on the others' targets, of another shape but as many."""
    if outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return False
    valid = targets if counted is None else targets[counted]
    if valid.numel() == 0:
        return False
    mirrored = valid.min() + valid.max() - targets  # other targets, in the same range
    others = mirrored if counted is None else torch.where(counted, mirrored, targets)
    changed = torch.cat([targets[:1], others[1:]])
    first, second = (torch.autograd.grad(each, outputs)[0][0] for each in (value, loss(outputs, changed)))
    return not torch.equal(first, second)


def right_predictions(
    outputs: Tensor, targets: Tensor, task: Task, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return how many predictions are right and how many there are, as scalars on the outputs' device.

    Both are 0 where there is no accuracy. Without waiting for the device.

    Parameters
    ----------
    outputs, targets, task
        Of a batch.
    counted
        Which of the targets count; None for all.
    """
    one_class_each = targets.shape == outputs.shape[:-1] and outputs.shape[-1] > 1
    if task == "regression" or targets.is_floating_point() or not one_class_each:
        none = torch.zeros((), dtype=torch.int64, device=outputs.device)
        return none, none
    right = outputs.argmax(-1) == targets
    counted = torch.ones_like(right) if counted is None else counted
    return (right & counted).sum(), counted.sum()


def validate_class_targets(targets: Tensor, classes: int, ignore_index: int = IGNORED) -> None:
    """Refuse class indices that the output has no room for, which the loss would report obscurely.

    Raises
    ------
    InputError
        A target is below 0 or not below ``classes``, and isn't the one to ignore.
    """
    if targets.is_floating_point():
        return
    targets = targets[targets != ignore_index]
    if targets.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= classes:
        raise InputError(
            "model.args",
            f"an output of {classes} classes",
            f"room for the targets {low} to {high} of the data",
            "A target that doesn't count, such as that of padding, is named by train.ignore_index.",
        )
