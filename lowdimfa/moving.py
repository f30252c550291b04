"""What a block's training forwards move by themselves, without an update: replicas of a block see other samples each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowdimfa.block_module import BlockModule, unchanged_buffers
from lowdimfa.encoding import is_dense, same_bits
from lowdimfa.layers import Layer
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from lowdimfa.unchanged import COUNTS, own_attributes
from lowdimfa.values import Activation

_ROUNDING = 1e-5
"""Relative, on a GPU, where the same forward may give other last digits."""

Values = dict[tuple[str, str], Any]
"""By the name of a layer, and a name within it."""

Buffers = dict[tuple[str, str], Tensor]
"""By the same."""


class Moved(NamedTuple):
    """What training forwards move; each is the name of a layer, and a name within it.

    Attributes
    ----------
    parameters
        Learned ones.
    made
        Buffers that are new and depend on the micro-batch, have another shape or type, or are gone.
    uneven
        Buffers of integers or truth values that other micro-batches move by other amounts.
    attributes
        Numbers and tensors beside the buffers that depend on more than the last micro-batch: a count, a mean, what
        the first batch has set.
    """

    parameters: list[tuple[str, str]]
    made: list[tuple[str, str]]
    uneven: list[tuple[str, str]]
    attributes: list[tuple[str, str]]


def training_forwards(stage: Stage, inputs: Sequence[Activation]) -> list[Activation]:
    """Return what a block in training makes of some micro-batches, each from the buffers that it has."""
    return [_forward(stage, each, number)[0] for number, each in enumerate(inputs)]


def moved_in_training(stage: Stage, other: Stage, inputs: Sequence[Activation]) -> Moved:
    """Find what forwards of a newly built block move.

    Parameters
    ----------
    stage, other
        The block, and the same block built once more. What they have in no buffer is not put back.
    inputs
        Two micro-batches that reach it, or one.
    """
    learned, before = _learned(stage.module), _buffers(stage.module)
    after = _forward(stage, inputs[0], 0)[1]
    parameters = [
        name for name, value in _learned(stage.module).items() if not same_bits(value, learned[name])
    ]
    last = len(inputs) - 1
    later = _forward(stage, inputs[last], last)[1]
    # From the same state, with other samples: as in another replica.
    elsewhere = _forward(other, inputs[last], last)[1]
    rounding = 0.0 if stage.device.type == "cpu" else _ROUNDING
    ours, theirs = _attributes(stage.module), _attributes(other.module)
    attributes = [name for name, value in ours.items() if not _is_same(value, theirs.get(name), rounding)]
    # What is the same whatever was seen before, as a mask of the last batch or a table that grows, nobody has to share.
    one, two = (_course(stage, [inputs[0], inputs[last]]), _course(other, [inputs[last]]))
    passing = {name for name in one if _is_equal(name, one, two)}
    made = [
        name
        for name in before | after
        if name not in passing and not _is_there(name, before, after, later, elsewhere)
    ]
    counts = [name for name, value in before.items() if not (value.is_floating_point() or value.is_complex())]
    uneven = [
        name
        for name in counts
        if name in after and name not in passing and not _is_equal(name, after, elsewhere)
    ]
    return Moved(parameters, made, uneven, attributes)


def _is_there(name: tuple[str, str], before: Buffers, *later: Buffers) -> bool:
    """Whether a buffer has been there with its shape and type, or was made alike whatever was seen."""
    if name in before:
        return all(name in one and _are_alike(one[name], before[name]) for one in later)
    return all(_is_equal(name, later[0], one) for one in later)


def _is_equal(name: tuple[str, str], one: Buffers, other: Buffers) -> bool:
    return name in other and same_bits(one[name], other[name])


def moved_counts(layers: Sequence[Layer], module: BlockModule) -> dict[str, list[str]]:
    """Return attributes that are numbers or truth values and differ between layers and a trained copy, by layer."""
    found: dict[str, list[str]] = {}
    for layer, (name, trained) in zip(layers, module.named_layers(), strict=True):
        before = dict(_named_attributes(layer.module, COUNTS))
        after = dict(_named_attributes(trained, COUNTS))
        if moved := [one for one in before if one in after and not _is_same(after[one], before[one], 0.0)]:
            found[name] = moved
    return found


def _forward(stage: Stage, inputs: Activation, number: int) -> tuple[Activation, Buffers]:
    """Return what a micro-batch's forward puts out, and the buffers that it leaves; those that were there are kept."""
    with torch.enable_grad(), unchanged_buffers(stage.module):
        outputs = stage.run(inputs, Ticket(0, number))
        return outputs, _buffers(stage.module)


def _course(stage: Stage, inputs: Sequence[Activation]) -> Buffers:
    """Return the buffers that forwards leave which go on from each other's."""
    with torch.enable_grad():
        for each in inputs:
            stage.run(each, Ticket(0, 0))
    return _buffers(stage.module)


def _learned(module: BlockModule) -> Buffers:
    return {
        (layer, name): value.detach().clone()
        for layer, part in module.named_layers()
        for name, value in part.named_parameters()
        if value.requires_grad
    }


def _buffers(module: BlockModule) -> Buffers:
    return {
        (layer, name): value.detach().clone()
        for layer, part in module.named_layers()
        for name, value in part.named_buffers()
        if is_dense(value)
    }


def _attributes(module: BlockModule) -> Values:
    return {
        (layer, name): value.detach().clone() if isinstance(value, Tensor) else value
        for layer, part in module.named_layers()
        for name, value in _named_attributes(part, (*COUNTS, Tensor))
    }


def _named_attributes(module: nn.Module, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules():
        for name, value in own_attributes(part).items():
            if type(value) in kinds:
                yield f"{path}.{name}".lstrip("."), value


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _is_same(one: Any, other: Any, rounding: float) -> bool:
    """Whether two values of an attribute differ by no more than rounding; of sparse and quantised ones it isn't known."""
    if type(one) is not type(other):
        return False
    if not isinstance(one, Tensor):
        both_nan = one != one and other != other
        return both_nan or math.isclose(one, other, rel_tol=rounding)
    if not (is_dense(one) and is_dense(other)):
        return True
    if rounding and one.is_floating_point() and _are_alike(one, other):
        return torch.allclose(one.double(), other.double(), rtol=rounding, equal_nan=True)
    return same_bits(one, other)
