"""What goes from layer to layer and from block to block: one tensor, or tensors by name, and the data's beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]
"""What data give for some samples: one tensor, or several by name, each with the samples first."""

Value = Tensor | dict[str, Tensor]
"""What a layer puts out: one tensor, or a named set of them, in the order of the names."""

MAX_MEMBERS = 16
"""Most tensors of a set that goes from block to block."""

CARRIED = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)
"""Element types of what goes from block to block."""

Change = Callable[[Tensor], Tensor]

ONE = ""
"""The name of a tensor that goes alone and has none."""


class TensorType(NamedTuple):
    """Shape and element type of a tensor, in a plan those of one sample, without the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape {list(self.shape)}"


Types = dict[str, TensorType]
"""By name; of a tensor that goes alone, under `ONE`."""


class Ports(NamedTuple):
    """What enters and leaves a block.

    Attributes
    ----------
    arrives
        The types of what comes from the block before, by name, in their order.
    leaves
        Those of what goes on to the next; empty where they are not known.
    side
        Names of the data's inputs that the block reads itself.
    tapped
        Names of what leaves at which the broadcast error enters.
    """

    arrives: Mapping[str, TensorType] = MappingProxyType({ONE: TensorType((), torch.float32)})
    leaves: Mapping[str, TensorType] = MappingProxyType({})
    side: tuple[str, ...] = ()
    tapped: tuple[str, ...] = (ONE,)


PLAIN = Ports()
"""Of a block with one tensor in and one tensor out, whose types are not known."""


@dataclass(frozen=True)
class Values:
    """What a layer puts out, where that is a named set, or where the data's inputs have names and so go beside it.

    Attributes
    ----------
    stream
        What goes on. Before the first layer it is the empty set: all that the layer takes comes from the data.
    side
        The data's inputs by name, the same for all layers. They don't travel: each block reads them from the data.
    """

    stream: Value
    side: Mapping[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Values:
        """Return the same without its past."""
        return Values(without_past(self.stream), self.side)

    def to(self, device: torch.device) -> Values:
        """Return the same on a device."""
        moved = everywhere(self, lambda tensor: tensor.to(device))
        assert isinstance(moved, Values)
        return moved


Activation = Tensor | Values
"""What enters a block: one tensor is only that, as long as nothing has a name."""


def entering(inputs: Inputs) -> Activation:
    """Return what the first layer gets of the data's inputs."""
    return inputs if isinstance(inputs, Tensor) else Values({}, inputs)


def opened(activation: Activation) -> tuple[Value, Mapping[str, Tensor]]:
    """Return what goes from layer to layer, and what goes beside it."""
    return (activation, {}) if isinstance(activation, Tensor) else (activation.stream, activation.side)


def onward(before: Activation, value: Value) -> Activation:
    """Return what the next block gets: what layers put out, with what went beside their input."""
    return with_side(value, opened(before)[1])


def with_side(value: Value, side: Mapping[str, Tensor]) -> Activation:
    """Return a value with inputs of the data beside it."""
    return value if isinstance(value, Tensor) and not side else Values(value, side)


def mapped(value: Value, change: Change) -> Value:
    """Return a value with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    return {name: change(tensor) for name, tensor in value.items()}


def without_past(value: Value) -> Value:
    """Return a value cut from the graph that made it."""
    return mapped(value, Tensor.detach)


def everywhere(activation: Activation, change: Change) -> Activation:
    """Return an activation with each of its tensors changed, also those of the data beside it."""
    if isinstance(activation, Tensor):
        return change(activation)
    side = {name: change(tensor) for name, tensor in activation.side.items()}
    return Values(mapped(activation.stream, change), side)


def named(value: Inputs) -> Mapping[str, Tensor]:
    """Return tensors by name; one that goes alone has the name `ONE`."""
    return {ONE: value} if isinstance(value, Tensor) else value


def tensors_of(value: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors of a value."""
    return (value,) if isinstance(value, Tensor) else tuple(value.values())


def one(activation: Activation | Value) -> Tensor:
    """Return the tensor of what is one tensor, as a network's output is."""
    value = activation.stream if isinstance(activation, Values) else activation
    assert isinstance(value, Tensor), "a network that puts out several is refused when it is cut"
    return value


def some_tensor(activation: Activation) -> Tensor:
    """Return one of the tensors: all have the same samples, on the same device."""
    value, side = opened(activation)
    return next(iter((*tensors_of(value), *side.values())))


def travelling(activation: Activation) -> tuple[Tensor, ...]:
    """Return what goes to the next block, which reads for itself what went beside."""
    return tensors_of(opened(activation)[0])


def types_of(value: Inputs, leading: int = 0) -> Types:
    """Return shapes, without so many leading dimensions, and types."""
    return {
        name: TensorType(tuple(tensor.shape[leading:]), tensor.dtype) for name, tensor in named(value).items()
    }


def put_together(names: Sequence[str], tensors: Sequence[Tensor]) -> Value:
    """Return the value of which these are the tensors, as `tensors_of` returns them."""
    return tensors[0] if tuple(names) == (ONE,) else dict(zip(names, tensors, strict=True))
