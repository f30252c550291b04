"""Tokens of which each follows from the one before: data for language models, and for networks that sort sequences."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 11


def following(samples: int = 256, length: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and test tokens, each with the token that follows."""
    sequences = [torch.arange(samples) % TOKENS]
    for _ in range(length):
        sequences.append((3 * sequences[-1] + 1) % TOKENS)
    whole = torch.stack(sequences, 1)
    inputs, targets = whole[:, :-1].contiguous(), whole[:, 1:].contiguous()
    return inputs, targets, inputs[:32], targets[:32]
