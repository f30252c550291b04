"""Tokens of which each follows from the one before: data for language models, and for networks that sort sequences."""

from __future__ import annotations

from typing import Any

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


def masked() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training and test items by name: every fourth token is hidden, and up to three are padding."""
    tokens = following()[0]
    rows, places = torch.arange(len(tokens)).unsqueeze(1), torch.arange(tokens.shape[1])
    mask = (places < tokens.shape[1] - rows % 4).long()
    hidden = ((places + rows) % 4 == 0) & (mask > 0)
    columns = {
        "input_ids": torch.where(hidden, TOKENS, tokens * mask),
        "attention_mask": mask,
        "labels": torch.where(hidden, tokens, -100),
    }
    items = [{name: column[row] for name, column in columns.items()} for row in range(len(tokens))]
    return items, items[:32]
