"""Layers that work in place, run on tensors that others hold too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lowdimfa.errors import LowdimfaError
from lowdimfa.values import Value, mapped, tensors_of


class Untouched:
    """Runs layers so that their input stays as it was: those that write to it get a copy, others don't pay for one.

    Which they are shows at the first run, on a copy: torch counts what is written to a tensor. Evaluation and training
    are told apart, since some layers (dropout) write in one of them only. The data's inputs beside it, which all layers
    get, none may write to.

    Parameters
    ----------
    block
        For the message.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._writes: dict[tuple[int | None, bool], bool] = {}

    def by(
        self, number: int | None, layers: Callable[..., Value], inputs: Value, side: Mapping[str, Tensor]
    ) -> Value:
        """Run layers, which are known by a number and by whether gradients are recorded.

        Raises
        ------
        LowdimfaError
            They wrote to their input, and didn't when they ran first; or to an input of the data beside it.
        """
        key = number, torch.is_grad_enabled()
        tensors = tensors_of(inputs)
        copied = self._writes.get(key, True) or any(tensor.is_inference() for tensor in tensors)
        given = mapped(inputs, Tensor.clone) if copied else inputs
        before, beside = _versions(tensors_of(given)), _versions(side.values())
        output = layers(given, side) if side else layers(given)
        wrote = _versions(tensors_of(given)) != before
        if beside != _versions(side.values()):
            raise LowdimfaError(
                f"block {self._block} wrote in place to an input of the data, which other layers get too; let the layer "
                "that does so make a copy",
                block=self._block,
            )
        if wrote and not copied:
            raise LowdimfaError(
                f"block {self._block} wrote in place to its input, and did not do so before; the block before it, or "
                "the data, may hold the same tensor. Let its first layer write always or never",
                block=self._block,
            )
        self._writes[key] = self._writes.get(key, False) or wrote
        return output


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
