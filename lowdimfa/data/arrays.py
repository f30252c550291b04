"""Arrays and tensors that a user's factory returns, as tensors with the samples first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from lowdimfa.data.splits import TensorSplit
from lowdimfa.errors import InputError
from lowdimfa.values import named


def is_data(part: object, by_name: bool) -> bool:
    """Return whether this is a tensor or an array, or where names may be, several of them."""
    if by_name and isinstance(part, Mapping):
        return len(part) > 0 and all(is_data(value, False) for value in part.values())
    return isinstance(part, Tensor | numpy.ndarray)


def tensor_split(parts: Sequence[Any], where: str, of: str) -> TensorSplit:
    """Return inputs and targets as samples.

    Parameters
    ----------
    parts
        Both; of inputs maybe several by name.
    where, of
        The key that names the factory, and the name of the split, for messages.

    Raises
    ------
    InputError
        They have unequal numbers of samples, or `tensor_of` refuses one.
    """
    given, targets = parts[0], tensor_of(parts[1], where, f"{of} targets")
    inputs = (
        {str(name): tensor_of(part, where, f"{of} inputs {name!r}") for name, part in given.items()}
        if isinstance(given, Mapping)
        else tensor_of(given, where, f"{of} inputs")
    )
    for name, part in named(inputs).items():
        if len(part) != len(targets):
            found = f"{len(part)} inputs{name and f' {name!r}'} and {len(targets)} targets"
            raise InputError(where, found, "one target per input")
    return TensorSplit(inputs, targets)


def tensor_of(part: Any, where: str, what: str) -> Tensor:
    """Return a tensor of the same numbers, in the same memory where torch can take it.

    Parameters
    ----------
    part
        A tensor or an array of NumPy.
    where, what
        The key that names the factory, and what this is of the data, for messages.

    Raises
    ------
    InputError
        It isn't dense, has no samples, has gaps, or isn't of numbers.
    """
    if numpy.ma.is_masked(part):
        raise InputError(
            where,
            f"a masked array as {what}",
            "numbers at every place",
            "Fill it, or leave such samples out.",
        )
    if part.ndim == 0:
        raise InputError(where, f"a single number as {what}", "the samples in the first dimension")
    if isinstance(part, Tensor):
        if part.layout != torch.strided:
            found = f"a tensor of the layout {str(part.layout).removeprefix('torch.')} as {what}"
            raise InputError(where, found, "a dense one", "Call its .to_dense() in the factory.")
        return part
    try:
        # Torch knows neither another order of bytes nor steps backwards.
        native = numpy.ma.getdata(part).astype(part.dtype.newbyteorder("="), copy=False)
        return torch.as_tensor(numpy.ascontiguousarray(native) if min(native.strides) < 0 else native)
    except TypeError as error:
        found = f"an array of {part.dtype} as {what}"
        hint = "Number classes that are texts, from 0, in the factory."
        raise InputError(where, found, "numbers of at most 64 bits", hint) from error
