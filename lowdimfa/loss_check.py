"""Try a loss on a first batch, so that what is wrong with it is told before training."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from lowdimfa.errors import InputError, in_words
from lowdimfa.losses import Loss


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
    except UserWarning as error:
        raise _broadcasts(shapes) from error
    except (Exception, SystemExit) as error:  # a user's loss may fail in any way
        raise InputError(
            "train.loss", f"a loss that fails on {shapes} ({in_words(error)})", expected
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        returned = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            "train.loss", f"a loss that returns {returned}", "a scalar tensor, the mean over the samples"
        )
    if _adds_up(loss, outputs, targets):
        raise InputError(
            "train.loss",
            "a loss that adds up over the samples: of three times as many it is three times as large",
            "the mean over the samples",
            "Divide it by their number, or leave out reduction='sum': here gradients are means over a whole batch, in "
            "however many micro-batches it is computed.",
        )
    if not value.requires_grad:
        raise InputError("train.loss", "a loss that doesn't depend on the outputs", "a differentiable loss")
    if _mixes_samples(loss, outputs, targets, value, counted):
        found = f"a loss that compares the output of one sample with the targets of others, on {shapes}"
        raise InputError(
            "train.loss", found, "outputs and targets of one shape", "Other shapes are broadcast."
        )
    return value.detach()


def _adds_up(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss is the sum over its samples, and not their mean; on made-up outputs, where it isn't 0."""
    generator = torch.Generator().manual_seed(0)
    made_up = torch.rand(outputs.shape, generator=generator).to(outputs)
    try:
        with torch.no_grad():
            once, thrice = (
                float(loss(made_up.repeat(times, *[1] * (outputs.dim() - 1)), torch.cat([targets] * times)))
                for times in (1, 3)
            )
    except Exception:  # one that takes batches of one size alone, say: training will tell
        return False
    return once != 0 and math.isclose(thrice, 3 * once, rel_tol=1e-4)


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


def _broadcasts(shapes: str) -> InputError:
    return InputError(
        "train.loss",
        f"a loss that compares the output of one sample with the targets of others, on {shapes}",
        "outputs and targets of one shape",
        "Different shapes are broadcast: reshape the targets, or the outputs in the model or the loss.",
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
