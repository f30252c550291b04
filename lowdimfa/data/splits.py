"""Splits: samples that are drawn by index, inputs and targets apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowdimfa.values import Inputs


class Split(Protocol):
    """A set of samples that can be drawn by index, inputs and targets apart.

    The head draws targets, and the first block inputs, with every block whose layers name inputs, in different
    processes: so each has its own method. What they return may depend on the indices and on the default generators of
    torch, NumPy and Python alone, which are seeded alike before each call for the same samples in the same epoch: a draw
    that inputs and targets share comes first in both methods.

    A split of text may also have ``bytes_per_target``: see `lowdimfa.data.base.bytes_per_target`.
    """

    def __len__(self) -> int: ...

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of the samples ``indices`` (int64, shape ``(batch,)``): shape ``(batch, …)``, or by name."""

    def targets(self, indices: Tensor) -> Tensor:
        """Return the targets of the samples ``indices``, shape ``(batch,)`` or ``(batch, …)``."""


@runtime_checkable
class DigestedSplit(Split, Protocol):
    """A split too large to be read before a run, which knows of its samples what is looked at there."""

    @property
    def digest(self) -> str:
        """A checksum of all samples, by which two processes know that theirs are the same."""

    def extremes(self) -> Tensor:
        """Return the smallest and the largest target that may occur."""


@dataclass(frozen=True)
class TensorSplit:
    """Samples held in tensors, of inputs one or several by name, with an optional transform of a batch of inputs."""

    input_data: Inputs
    target_data: Tensor
    transform: Callable[[Any], Inputs] | None = None

    def __len__(self) -> int:
        return len(self.target_data)

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the transformed inputs of the given samples."""
        data = self.input_data
        batch = (
            data[indices]
            if isinstance(data, Tensor)
            else {name: part[indices] for name, part in data.items()}
        )
        return batch if self.transform is None else self.transform(batch)

    def targets(self, indices: Tensor) -> Tensor:
        """Return the targets of the given samples."""
        return self.target_data[indices]


@dataclass(frozen=True)
class SubSplit:
    """Some samples of another split, maybe one more often than another."""

    split: Split
    chosen: Tensor

    @property
    def bytes_per_target(self) -> float | None:
        """What the whole split tells."""
        told: float | None = getattr(self.split, "bytes_per_target", None)
        return told

    @cached_property
    def before(self) -> Tensor | None:
        """How often each of them was chosen already, by which it draws other numbers each time; None if none was."""
        _, chosen = in_whole(self.split, self.chosen)
        if bool((chosen[1:] > chosen[:-1]).all()):
            return None
        ordered, order = torch.sort(chosen, stable=True)
        _, counts = torch.unique_consecutive(ordered, return_counts=True)
        if len(counts) == len(chosen):
            return None
        places = torch.arange(len(chosen))
        before = torch.empty_like(places)
        before[order] = places - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return before

    def __len__(self) -> int:
        return len(self.chosen)

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of the given samples."""
        return self.split.inputs(self.chosen[indices])

    def targets(self, indices: Tensor) -> Tensor:
        """Return the targets of the given samples."""
        return self.split.targets(self.chosen[indices])


def in_whole(split: Split, indices: Tensor) -> tuple[Split, Tensor]:
    """Return the split of which this one is a part, or itself, and the indices that samples have there."""
    while isinstance(split, SubSplit):
        indices, split = split.chosen[indices], split.split
    return split, indices


def whole_of(split: Split) -> Split:
    """Return the split of which this one is a part, or itself."""
    while isinstance(split, SubSplit):
        split = split.split
    return split
