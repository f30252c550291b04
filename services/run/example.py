"""What a run's network is planned with: a few of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lowdimfa.data.base import Task
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError
from lowdimfa.values import Inputs, TensorType, Types, Value, mapped, types_of

MOST = 4
"""Samples of an example."""


@dataclass(frozen=True)
class Example:
    """The network's inputs and the task: all that a block needs to know of the data to plan the network.

    Attributes
    ----------
    inputs
        Of the first training samples, `MOST` of them at most, with the samples first. Their values count where a model's
        own forward is compared with its layers: on zeros, or one sample alone, many functions are the same.
    task
        Of the data.
    """

    inputs: Inputs
    task: Task

    @classmethod
    def of(cls, reader: Reader) -> Self:
        """Return the example of a run's data.

        Raises
        ------
        InputError
            Test inputs have another shape or type, for which the first evaluation would fail.
        """
        few = torch.arange(min(MOST, len(reader.dataset.train)))
        first, test = reader.training(few).inputs(), reader.test(few[:1]).inputs()
        if isinstance(first, Tensor) and isinstance(
            test, Tensor
        ):  # inputs by name are looked at as they are read
            kind, other = (TensorType(tuple(one.shape[1:]), one.dtype) for one in (first, test))
            if kind != other:
                found = f"{other} as a test input"
                raise InputError("data.factory", found, f"{kind}, as the training inputs have it")
        return cls(mapped(_plain(first), Tensor.clone), reader.dataset.task)

    @property
    def types(self) -> Types | None:
        """Of one sample's inputs, where they have names."""
        return None if isinstance(self.inputs, Tensor) else types_of(self.inputs, leading=1)

    def batch(self, samples: int = MOST) -> Inputs:
        """Return a batch of these samples, again and again."""
        return mapped(_plain(self.inputs), lambda part: part[torch.arange(samples) % len(part)])


def _plain(inputs: Inputs) -> Value:
    return inputs if isinstance(inputs, Tensor) else dict(inputs)
