"""Layers that work in place, run on tensors that others hold too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowdimfa.errors import LowdimfaError


class Untouched:
    """Runs layers so that their input stays as it was: those that write to it get a copy, others don't pay for one.

    Which they are shows at the first run, on a copy: torch counts what is written to a tensor. Evaluation and training
    are told apart, since some layers (dropout) write in one of them only.

    Parameters
    ----------
    block
        For the message.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._writes: dict[tuple[int | None, bool], bool] = {}

    def by(self, number: int | None, layers: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Run layers, which are known by a number and by whether gradients are recorded.

        Raises
        ------
        LowdimfaError
            They wrote to their input, and didn't when they ran first.
        """
        key = number, torch.is_grad_enabled()
        copied = self._writes.get(key, True) or inputs.is_inference()
        given = inputs.clone() if copied else inputs
        before = given._version
        output = layers(given)
        wrote = given._version != before
        if wrote and not copied:
            raise LowdimfaError(
                f"block {self._block} wrote in place to its input, and did not do so before; the block before it, or "
                "the data, may hold the same tensor. Let its first layer write always or never",
                block=self._block,
            )
        self._writes[key] = self._writes.get(key, False) or wrote
        return output
