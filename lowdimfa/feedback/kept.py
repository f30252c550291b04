"""What rules keep from step to step, and where their tensors are."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor


class Kept:
    """What rules for ``Q`` and for ``P`` have in common.

    Attributes
    ----------
    weights
        What the rule is about. In checkpoints by itself.
    kept
        Names of the other attributes that the rule needs to go on after a step, such as running means: tensors,
        numbers, or what `lowdimfa.encoding` can hold. They are in checkpoints, exactly. What a step accumulates and
        uses up isn't among them.
    """

    weights: Tensor
    kept: ClassVar[tuple[str, ...]] = ()

    def step(self) -> None:
        """Apply what an optimiser step has accumulated."""

    def state(self) -> dict[str, Any]:
        """Return what is kept beside the weights, by name."""
        return {name: getattr(self, name) for name in self.kept}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name in self.kept:
            value = state[name]
            # A copy: memory of torch's own, and nobody else's.
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)

    def to(self, device: torch.device) -> Self:
        """Move the weights, and all tensors in attributes, also those in modules, lists and dicts, to a device."""
        for name, value in list(vars(self).items()):
            if isinstance(value, torch.nn.Parameter):
                value.data = value.data.to(device)
            elif isinstance(value, torch.nn.Module):
                value.to(device)
            else:
                setattr(self, name, _moved(value, device))
        return self


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(one, device) for one in value)
    return value
