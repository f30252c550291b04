"""Losses by name, and what an evaluation counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.config import IGNORED, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.imports import resolve

Loss = Callable[[Tensor, Tensor], Tensor]
"""A differentiable function of the head's output and the targets: the mean over the micro-batch, a scalar."""


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Softmax cross-entropy in nats; ``logits (batch, *positions, classes)``, ``targets (batch, *positions)``.

    Raises
    ------
    InputError
        A target is no class that the logits have room for.
    """
    shape, found = tuple(logits.shape[:-1]), tuple(targets.shape)
    if found not in (shape, (*shape, 1)):
        raise ValueError(f"logits of shape {tuple(logits.shape)}, their classes last, and targets of {found}")
    try:
        classes = as_classes(targets).flatten()
        return functional.cross_entropy(logits.flatten(0, -2), classes, ignore_index=ignore_index)
    except IndexError:
        validate_class_targets(targets, logits.shape[-1], ignore_index)
        raise


def as_classes(targets: Tensor) -> Tensor:
    """Return targets that are whole numbers of any type, or truth values, as classes that torch's losses take."""
    taken = targets.is_floating_point() or targets.dtype in (torch.int64, torch.uint8)
    return targets if taken else targets.long()


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


def make_loss(name: str | Loss, task: Task, ignore_index: int = IGNORED) -> Loss:
    """Return the loss that a specification names: ``auto``, a name in `LOSSES`, an import path, or the loss itself.

    Raises
    ------
    InputError
        The name is none of these, the import fails, ``ignore_index`` was given for a loss that knows no classes or has
        another one, or the loss has parameters, which nothing would train.
    """
    loss = _found(name, task)
    if not isinstance(loss, str):
        _agreeing(without_parameters(loss), ignore_index)
        if not is_cross_entropy(loss, task):
            return loss
        loss = "cross_entropy"
    if loss == "cross_entropy":
        return partial(cross_entropy, ignore_index=ignore_index)
    if ignore_index != IGNORED:
        expected = "it with cross_entropy, or with a loss of your own that leaves out the same class"
        raise InputError("train.ignore_index", f"{ignore_index} with the loss {loss!r}", expected)
    return LOSSES[loss]


def _found(name: str | Loss, task: Task) -> str | Loss:
    """Return the name in `LOSSES` that is meant, or the loss of one's own.

    Raises
    ------
    InputError
        The name is unknown, or the import fails.
    """
    if not isinstance(name, str) or name in LOSSES:
        return name
    if name == "auto":
        return _DEFAULTS[task]
    if "." not in name and ":" not in name:
        raise InputError("train.loss", repr(name), f"auto, {', '.join(LOSSES)}, or an import path")
    return resolve(name, "train.loss")


def _agreeing(loss: Loss, ignore_index: int) -> None:
    """Refuse a loss that leaves out another class than accuracy, metrics and the weights of batches do."""
    own = _ignored_by(loss)
    if isinstance(own, int) and not isinstance(own, bool) and own != ignore_index:
        raise InputError(
            "train.ignore_index",
            f"{ignore_index}, with a loss whose ignore_index is {own}",
            f"{own} in both",
            "What the loss leaves out counts in no accuracy, metric or weight of a micro-batch either.",
        )


def _ignored_by(loss: Loss) -> Any:
    """Return the class that a loss leaves out, as far as it says so."""
    if isinstance(loss, partial):
        return loss.keywords["ignore_index"] if "ignore_index" in loss.keywords else _ignored_by(loss.func)
    default = IGNORED if loss in (functional.cross_entropy, functional.nll_loss) else None
    return getattr(loss, "ignore_index", default)


def without_parameters(loss: Loss, where: str = "train.loss") -> Loss:
    """Return a loss that has no parameters.

    Raises
    ------
    InputError
        It has some, which nothing would train.
    """
    if isinstance(loss, nn.Module) and any(one.requires_grad for one in loss.parameters()):
        expected = "one without: nothing would train them"
        raise InputError(where, f"a {type(loss).__name__} with parameters", expected)
    return loss


def counts(name: str | Loss, task: Task, ignore_index: int) -> Callable[[Tensor], Tensor | None]:
    """Return which of the targets a loss counts, as booleans, or None for all: what is ignored counts nowhere else."""
    ignores = _found(name, task) not in ("mse", "bce")
    return partial(_counted, ignore_index) if ignores else lambda targets: None


def _counted(ignore_index: int, targets: Tensor) -> Tensor | None:
    # In torch a number that is compared with uint8 becomes uint8, which would make -100 class 156.
    return None if targets.is_floating_point() else targets.long() != ignore_index


def is_cross_entropy(name: str | Loss, task: Task) -> bool:
    """Return whether a loss is softmax cross-entropy, the mean over what counts of the positions.

    Of single classes torch's own is it, too. For positions that takes the classes in another dimension.
    """
    loss = _found(name, task)
    if isinstance(loss, str):
        return loss == "cross_entropy"
    if type(loss) is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.label_smoothing == 0 and loss.reduction == "mean"
    else:
        plain = loss is functional.cross_entropy
    return plain and task == "classification"


def shows_targets(name: str | Loss, task: Task) -> bool:
    """Return whether one output error tells the target: softmax minus one-hot, whose one negative number is at it."""
    return task != "regression" and is_cross_entropy(name, task)


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
    right = outputs.argmax(-1) == as_classes(targets)
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
    targets = targets.long()
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


def validate_tokens(inputs: Tensor | Mapping[str, Tensor], vocabulary: int) -> None:
    """Refuse tokens, of inputs by name those called ``input_ids``, that an embedding has no room for.

    Raises
    ------
    InputError
        A token is below 0 or not below ``vocabulary``.
    """
    tokens = inputs if isinstance(inputs, Tensor) else inputs.get("input_ids")
    if tokens is None:
        return
    low, high = (int(value) for value in torch.aminmax(tokens))
    if low < 0 or high >= vocabulary:
        found = f"an embedding of {vocabulary} tokens"
        raise InputError("model.args", found, f"room for the tokens {low} to {high} of the data")


@dataclass(frozen=True)
class Objective:
    """What the head minimises.

    Attributes
    ----------
    loss
        Mean over a micro-batch.
    task
        Decides whether accuracy is counted.
    counts
        Tells which of the targets the loss counts, or None for all of them.
    microbatches
        Parts of a step's batch: the error is that of the mean over the whole batch.
    """

    loss: Loss
    task: Task
    counts: Callable[[Tensor], Tensor | None]
    microbatches: int

    def count(self, targets: Tensor) -> int:
        """Return how many of the targets the loss counts."""
        counted = self.counts(targets)
        return targets.numel() if counted is None else int(counted.sum())

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many predictions are right, and how many count, as `right_predictions` does."""
        return right_predictions(outputs, targets, self.task, self.counts(targets))

    def weights(self, targets: Sequence[Tensor]) -> list[float]:
        """Return what each micro-batch of a step weighs in the mean over what counts in its batch: 1 on average.

        Where nothing counts, in a micro-batch or in all of them, the weight is 0.
        """
        counted = [self.count(part) for part in targets]
        return [len(counted) * number / (sum(counted) or 1) for number in counted]

    def error(self, outputs: Tensor, targets: Tensor, weight: float | None = None) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's weighted mean loss and ``e``, the gradient of the batch's mean loss, both detached.

        ``weight`` is one of those that `weights` returns; by default that of a micro-batch that counts as all others.
        """
        leaf = precise(outputs.detach()).requires_grad_()
        (weight,) = self.weights([targets]) if weight is None else (weight,)
        if not weight:  # the mean over nothing isn't a number
            return torch.zeros((), device=outputs.device), torch.zeros_like(leaf)
        with torch.enable_grad():
            loss = self.loss(leaf, targets)
        (error,) = torch.autograd.grad(loss, leaf)
        if weight != 1:
            loss, error = weight * loss, weight * error
        # Of one micro-batch it is that already; with a large vocabulary another pass over it takes time.
        return loss.detach(), error if self.microbatches == 1 else error / self.microbatches

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let a loss that is a module, or a method of one, be in evaluation mode, then in its parts' modes again."""
        loss = self.loss
        while isinstance(loss, partial):
            loss = loss.func
        own = loss if isinstance(loss, nn.Module) else getattr(loss, "__self__", None)
        if not isinstance(own, nn.Module):
            yield
            return
        modes = [(module, module.training) for module in own.modules()]
        own.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    @classmethod
    def of(cls, training: TrainingConfig, task: Task, device: torch.device | None = None) -> Objective:
        """Return what a network is trained for; a loss with tensors, such as weights of classes, has them on a device."""
        settings = training.loss, task, training.ignore_index
        loss = make_loss(*settings)
        if isinstance(loss, nn.Module) and device is not None:
            loss = deepcopy(loss).to(device)
        return cls(loss, task, counts(*settings), training.microbatches)


def precise(outputs: Tensor) -> Tensor:
    """Return outputs in the precision of the loss: at least single."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()
