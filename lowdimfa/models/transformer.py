"""The encoder block that the transformers share, and how they are initialised."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

INITIAL_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} can't be divided among {heads} heads; give a multiple of heads")
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=self.causal
        )
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added to the residual stream."""

    residual_stream: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, causal: bool) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, causal)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        hidden = functional.gelu(self.expand(self.mlp_norm(x)))
        output: Tensor = x + self.dropout(self.contract(hidden))
        return output


def initialise(model: nn.Module, depth: int) -> None:
    """Draw the weights of a transformer of ``depth`` blocks from a narrow normal distribution.

    What writes to the residual stream starts smaller, by the root of the number of writers, so that the
    stream's variance does not grow with depth.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, EncoderBlock):
            for weight in (module.attention.proj.weight, module.contract.weight):
                nn.init.trunc_normal_(weight, std=INITIAL_STD / math.sqrt(2 * depth))
