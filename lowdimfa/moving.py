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


class Moved(NamedTuple):
    """What training forwards move; each is the name of a layer, and a name within it.

    Attributes
    ----------
    parameters
        Learned ones.
    made
        Buffers that were not there before, or had another shape or type.
    uneven
        Buffers of integers or truth values that other micro-batches move by other amounts.
    attributes
        Numbers and tensors beside the buffers that move on when the same micro-batch comes again, as a count does, and as
        what was last seen does not.
    """

    parameters: list[tuple[str, str]]
    made: list[tuple[str, str]]
    uneven: list[tuple[str, str]]
    attributes: list[tuple[str, str]]


def training_forwards(stage: Stage, inputs: Sequence[Activation]) -> list[Activation]:
    """Return what a block in training makes of some micro-batches, each from the buffers that it has."""
    return [_forward(stage, each, number)[0] for number, each in enumerate(inputs)]


def moved_in_training(stage: Stage, inputs: Sequence[Activation]) -> Moved:
    """Find what forwards of a newly built block move.

    Parameters
    ----------
    stage
        The block. What it has in no buffer is not put back.
    inputs
        Two micro-batches that reach it, or one.
    """
    module = stage.module
    learned, before = _learned(module), _buffers(module)
    after = [_forward(stage, inputs[0], 0)[1]]
    parameters = [name for name, value in _learned(module).items() if not same_bits(value, learned[name])]
    made = [
        name for name, value in after[0].items() if name not in before or not _are_alike(value, before[name])
    ]
    if parameters or made:
        return Moved(parameters, made, [], [])
    first = _attributes(module)
    _forward(stage, inputs[0], 0)
    again = _attributes(module)
    rounding = 0.0 if stage.device.type == "cpu" else _ROUNDING
    kept = [name for name in again if name in first]
    attributes = [name for name in kept if not _is_same(again[name], first[name], rounding)]
    after += [_forward(stage, each, number)[1] for number, each in enumerate(inputs[1:], 1)]
    counts = [name for name, value in before.items() if not (value.is_floating_point() or value.is_complex())]
    uneven = [name for name in counts if not all(same_bits(one[name], after[0][name]) for one in after)]
    return Moved([], [], uneven, attributes)


def moved_counts(layers: Sequence[Layer], module: BlockModule) -> dict[str, list[str]]:
    """Return attributes that are numbers or truth values and differ between layers and a trained copy, by layer."""
    found: dict[str, list[str]] = {}
    for layer, (name, trained) in zip(layers, module.named_layers(), strict=True):
        before = dict(_named_attributes(layer.module, COUNTS))
        after = dict(_named_attributes(trained, COUNTS))
        if moved := [one for one in before if one in after and not _is_same(after[one], before[one], 0.0)]:
            found[name] = moved
    return found


def _forward(
    stage: Stage, inputs: Activation, number: int
) -> tuple[Activation, dict[tuple[str, str], Tensor]]:
    """Return what a micro-batch's forward puts out, and the buffers that it leaves; those that were there are kept."""
    with torch.enable_grad(), unchanged_buffers(stage.module):
        outputs = stage.run(inputs, Ticket(0, number))
        return outputs, _buffers(stage.module)


def _learned(module: BlockModule) -> dict[tuple[str, str], Tensor]:
    return {
        (layer, name): value.detach().clone()
        for layer, part in module.named_layers()
        for name, value in part.named_parameters()
        if value.requires_grad
    }


def _buffers(module: BlockModule) -> dict[tuple[str, str], Tensor]:
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
