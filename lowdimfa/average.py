"""A moving average of a block's weights, with which it is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

PREFIX = "average/"
"""Of the names of the averages in a checkpoint."""


class Average:
    """An exponential moving average: ``a ← decay a + (1 - decay) w`` after each step, ``a = w`` after the first.

    The arithmetic is that of `torch.optim.swa_utils`. Buffers, such as running statistics, are not averaged. Averages are
    kept in float32 or wider: in bfloat16 the increments would be rounded away.

    Parameters
    ----------
    parameters
        Those that are trained, by name.
    decay
        Below 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._steps = 0
        self._weights = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in parameters.values()
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after an optimiser step."""
        current = [
            parameter.detach().to(own.dtype)
            for parameter, own in zip(self._parameters.values(), self._weights, strict=True)
        ]
        if self._steps:
            self._update(self._weights, current, self._steps)
        else:
            for own, value in zip(self._weights, current, strict=True):
                own.copy_(value)
        self._steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the layers have the averages for weights in the body."""
        present = [(parameter, parameter.data) for parameter in self._parameters.values()]
        for (parameter, data), own in zip(present, self._weights, strict=True):
            parameter.data = own.to(data.dtype)
        try:
            yield
        finally:
            for parameter, data in present:
                parameter.data = data

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the averages by name, and how many steps they have."""
        names = [f"{PREFIX}{name}" for name in self._parameters]
        return dict(zip(names, self._weights, strict=True)), {"average": {"steps": self._steps}}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], *scalars: Mapping[str, Any]) -> None:
        """Restore the state; the average of what has none, as of what was frozen, begins with the weight as it is."""
        steps = [part["average"]["steps"] for part in scalars if "average" in part]
        # A block that had nothing to learn notes none.
        kept = tensors if steps else {}
        names = {name: f"{PREFIX}{name}" for name in self._parameters}
        self._steps = min(steps, default=0) if any(key in kept for key in names.values()) else 0
        for own, (name, parameter) in zip(self._weights, self._parameters.items(), strict=True):
            own.copy_(kept.get(names[name], parameter).detach())
