"""How feature maps lie in memory, where autograd wouldn't keep to it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def keeping_layout(maps: Tensor) -> Tensor:
    """Return feature maps that get their gradient with channels last where they lie so themselves.

    What is made flat is copied with channels first, and so comes the gradient. What made the maps would then copy it, or
    compute with both layouts at once, several times as slowly. The gradient's values stay as they are.

    Parameters
    ----------
    maps
        Shape ``(batch, channels, *sizes)``; anything else is returned as it is.
    """
    last = _CHANNELS_LAST.get(maps.dim())
    if last is None or not maps.requires_grad or maps.is_contiguous():
        return maps
    if not maps.is_contiguous(memory_format=last):
        return maps
    maps = maps.view_as(maps)  # a tensor of its own: the hook is for what comes this way alone
    maps.register_hook(partial(Tensor.contiguous, memory_format=last))  # type: ignore[no-untyped-call]
    return maps
