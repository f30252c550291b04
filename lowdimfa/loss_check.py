"""Try a loss on a first batch, so that what is wrong with it is told before training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lowdimfa.encoding import same_bits
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
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
        The loss fails, isn't a scalar or doesn't depend on the outputs, or on parameters beside them, writes to what it
        is given or has a state that it changes, counts targets that are to be ignored, takes the classes in another
        dimension than accuracy does, or compares one sample's output with another's target, because shapes are broadcast.
    """
    outputs = outputs.detach().requires_grad_()
    shapes = f"outputs {tuple(outputs.shape)} ({outputs.dtype}) and targets {tuple(targets.shape)} ({targets.dtype})"
    expected = "a model whose last layer fits the data's targets and the loss"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch's, where shapes are broadcast
            loss = deepcopy(loss) if isinstance(loss, nn.Module) else loss  # which its calls may change
            with reproducible(0):
                value = _left_as_they_are(loss, outputs, targets)
            with reproducible(0):
                again = loss(outputs, targets)
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
    if not (same_bits(again, value) or math.isclose(again, value, rel_tol=1e-6)):
        raise _changes(
            "an attribute, a variable of its closure, or a generator that isn't torch's global one"
        )
    leaves = list(_leaves(value))
    # What a call makes for itself, such as a sum to begin with, is another tensor in the next one.
    lasting = [leaf for leaf in leaves for other in _leaves(again) if leaf is other]
    if any(leaf is not outputs for leaf in lasting):
        raise InputError(
            "train.loss",
            "a loss that depends on parameters of its own, or of the model",
            "a function of outputs and targets: nothing would train them",
            "Penalties on weights are the optimiser's (weight_decay), what is to be learned belongs to a layer of the "
            "model, and what isn't needs requires_grad_(False).",
        )
    if not any(leaf is outputs for leaf in leaves):
        raise InputError("train.loss", "a loss that doesn't depend on the outputs", "a differentiable loss")
    if counted is not None and _learns_from(~counted, outputs, value):
        raise InputError(
            "train.ignore_index",
            "a number that is among the targets, with a loss that counts it",
            "a number that no target is, or a loss that leaves it out",
            "What is ignored counts in no accuracy, metric or weight of a micro-batch.",
        )
    if _takes_classes_second(outputs, targets, value):
        raise InputError(
            "train.loss",
            f"a loss that takes the classes in the second dimension, on {shapes}",
            "classes in the last dimension, or another number of positions than of classes",
            "Accuracy and metrics take the last one for the classes where it could be: let the loss change the order.",
        )
    if _mixes_samples(loss, outputs, targets, value, counted):
        raise _broadcasts(shapes)
    return value.detach()


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """Yield the tensors at which the gradients of a value end."""
    found = {get_gradient_edge(value).node} if value.requires_grad else set()
    ahead = list(found)
    while ahead:
        node = ahead.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        new = {other for other, _ in node.next_functions if other is not None} - found
        found |= new
        ahead += new


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
    """Return the loss, or refuse it if it writes to what it is given, or to a state of its own."""
    kept = _state_of(loss)
    given = {"outputs": outputs, "targets": targets}
    before = {what: (value._version, value.detach().clone()) for what, value in given.items()}
    written = None
    try:
        result = loss(outputs, targets)
        for what, (version, values) in before.items():
            if given[what]._version != version or not same_bits(given[what], values):
                written = what
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        written = "outputs"
    if written is not None:
        raise InputError(
            "train.loss",
            f"a loss that writes to the {written} in place",
            "one that leaves them as they are",
            f"Let it work on a copy, {written}.clone(), or with operations that make new tensors.",
        )
    moved = [
        name
        for name, tensor in _state_of(loss).items()
        if name not in kept or not same_bits(tensor, kept[name])
    ]
    if moved:
        raise _changes(repr(moved[0]))
    return result


def _changes(what: str) -> InputError:
    return InputError(
        "train.loss",
        f"a loss whose calls change a state of its own, {what}",
        "one that is the same function at every call",
        "Evaluations would change it too, and it is in no checkpoint. Give it what is known before the run, and let "
        "a network within it be in evaluation mode.",
    )


def _learns_from(ignored: Tensor, outputs: Tensor, value: Tensor) -> bool:
    """Return whether outputs have a gradient where the target is ignored."""
    if not ignored.any() or ignored.all():
        return False
    (gradient,) = torch.autograd.grad(value, outputs, retain_graph=True)
    classes_last = gradient.movedim(1, -1) if gradient.dim() > 1 else gradient  # torch's come second
    for each in (gradient, classes_last):
        if each.shape[: ignored.dim()] == ignored.shape:
            return bool(each[ignored].any())
    return False


def _takes_classes_second(outputs: Tensor, targets: Tensor, value: Tensor) -> bool:
    """Return whether classes come second, where the last dimension is as large: a softmax's gradients add up to 0."""
    sizes = outputs.shape
    if (
        targets.is_floating_point()
        or targets.dim() < 2
        or targets.shape != sizes[:-1]
        or sizes[1] != sizes[-1]
    ):
        return False
    (gradient,) = torch.autograd.grad(value, outputs, retain_graph=True)
    second, last = (float(gradient.sum(dim).abs().max()) for dim in (1, -1))
    return second <= 1e-4 * float(gradient.abs().max()) < last


def _state_of(loss: Loss) -> dict[str, Tensor]:
    state = loss.state_dict() if isinstance(loss, nn.Module) else {}
    dense = {name: value for name, value in state.items() if getattr(value, "layout", None) is torch.strided}
    return {name: value.clone() for name, value in dense.items()}


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
    """Return whether outputs are compared with the targets of others, of another shape but as many.

    Then the first sample's gradient depends on the others' targets. So it does in a function of the whole batch's mean,
    such as its root; but there it matters whose target is whose.
    """
    if outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return False
    # A loss of the user's own may leave out what is missing.
    counted = ~targets.isnan() if counted is None else counted
    # Torch doesn't subtract truth values.
    numbers = targets.long() if targets.dtype == torch.bool else targets
    valid = numbers[counted]
    if valid.numel() == 0:
        return False
    mirrored = (valid.min() + valid.max() - numbers).to(targets.dtype)  # other targets, in the same range
    others = torch.where(counted, mirrored, targets)
    changed = torch.cat([targets[:1], others[1:]])
    first, second = (torch.autograd.grad(each, outputs)[0][0] for each in (value, loss(outputs, changed)))
    return not same_bits(first, second) and not _pairs(loss, outputs, targets, counted)


def _pairs(loss: Loss, outputs: Tensor, targets: Tensor, counted: Tensor) -> bool:
    """Return whether outputs that are right cost something else once the targets change places."""
    right, moved = targets.reshape(outputs.shape).to(outputs), targets.clone()
    moved[counted] = targets[counted].roll(1)
    try:
        with torch.no_grad():
            each = [float(loss(right, placed)) for placed in (targets, moved)]
    except Exception:  # one that takes no such outputs
        return False
    return all(map(math.isfinite, each)) and not math.isclose(*each, rel_tol=1e-5)
