"""Drawing samples of a split: seeded, each item once for both of its parts, in memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lowdimfa.data.items import ItemSplit, Samples, of_items
from lowdimfa.data.splits import Split, SubSplit, TensorSplit, in_whole
from lowdimfa.data.streams import StreamSplit
from lowdimfa.errors import InputError
from lowdimfa.generators import seed_generators
from lowdimfa.tickets import derive_seed

T = TypeVar("T")


def read(split: Split, indices: Tensor, seed: int) -> Samples:
    """Read samples of a split, with the default generators seeded; items are read once for both of their parts."""
    all_before = split.before if isinstance(split, SubSplit) else None
    before = torch.zeros_like(indices) if all_before is None else all_before[indices]
    split, indices = in_whole(split, indices)
    if isinstance(split, ItemSplit):
        return split.read(indices, seed, before)
    # In an epoch each sample is in one batch only, so that one of them stands for the batch.
    of_batch = derive_seed(seed, *of_items(indices[:1].tolist(), before[:1].tolist()))
    return Samples(
        partial(_drawn, split, split.inputs, indices, of_batch),
        partial(_drawn, split, split.targets, indices, of_batch),
    )


def _drawn(split: Split, draw: Callable[[Tensor], T], indices: Tensor, seed: int) -> T:
    """Return what a method of a split gives for some samples, in memory of its own.

    Raises
    ------
    InputError
        That is neither a tensor nor a mapping.
    """
    seed_generators(seed)
    drawn: Any = draw(indices)
    # What was written for tensors alone has picked the samples into new memory. All else may fill the same memory at each
    # call, and micro-batches wait for each other.
    if type(split) is TensorSplit and split.transform is None:
        return cast(T, drawn)
    if isinstance(drawn, Tensor):
        return cast(T, drawn.clone())
    if isinstance(drawn, Mapping):
        parts = {name: part.clone() if isinstance(part, Tensor) else part for name, part in drawn.items()}
        return cast(T, parts)
    found = f"a {type(split).__name__} that returned a {type(drawn).__name__} for {len(indices)} samples"
    raise InputError("data.factory", found, "a tensor, or for inputs by name a dict of tensors")


def spread(split: Split, at_most: int) -> Tensor:
    """Return so many indices of a split at most, evenly spread over it; of a stream the first, which cost the least."""
    chosen = min(len(split), at_most)
    among = chosen if isinstance(split, StreamSplit) else len(split)
    return torch.arange(chosen) * among // chosen
