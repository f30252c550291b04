"""What a run's network is planned with in place of its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lowdimfa.data.base import Task
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError
from lowdimfa.values import Inputs, TensorType, Types, types_of


@dataclass(frozen=True)
class Example:
    """The network's inputs and the task: all that a block needs to know of the data to plan the network.

    Attributes
    ----------
    inputs
        Of the first sample. Of one tensor shape and type alone count; of inputs by name, such as masks, also the values.
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
        first, test = (draw(torch.tensor([0])).inputs() for draw in (reader.training, reader.test))
        if isinstance(first, Tensor) and isinstance(
            test, Tensor
        ):  # inputs by name are looked at as they are read
            kind, other = (TensorType(tuple(one.shape[1:]), one.dtype) for one in (first, test))
            if kind != other:
                found = f"{other} as a test input"
                raise InputError("data.factory", found, f"{kind}, as the training inputs have it")
        kept = (
            torch.zeros_like(first)
            if isinstance(first, Tensor)
            else {name: part.clone() for name, part in first.items()}
        )
        return cls(kept, reader.dataset.task)

    @property
    def types(self) -> Types | None:
        """Of one sample's inputs, where they have names."""
        return None if isinstance(self.inputs, Tensor) else types_of(self.inputs, leading=1)

    def batch(self, samples: int = 2) -> Inputs:
        """Return a batch of this sample alone."""
        if isinstance(self.inputs, Tensor):
            return self.inputs.repeat_interleave(samples, 0)
        return {name: part.repeat_interleave(samples, 0) for name, part in self.inputs.items()}
