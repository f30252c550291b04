"""Arrays and tensors that a user's factory returns, as tensors with the samples first."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import InputError


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
    if isinstance(part, numpy.ma.MaskedArray):
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
        native = part.astype(part.dtype.newbyteorder("="), copy=False)
        return torch.as_tensor(numpy.ascontiguousarray(native) if min(native.strides) < 0 else native)
    except TypeError as error:
        found = f"an array of {part.dtype} as {what}"
        hint = "Number classes that are texts, from 0, in the factory."
        raise InputError(where, found, "numbers of at most 64 bits", hint) from error
