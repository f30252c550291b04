"""Causal transformers over characters or other tokens of a small vocabulary."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.transformer import INITIAL_STD, EncoderBlock, initialise

_MLP_RATIO = 4.0


class TokenEmbedding(nn.Module):
    """Map tokens to vectors and add learned positions."""

    residual_stream: ClassVar[bool] = True
    cut_after: ClassVar[bool] = False

    def __init__(self, vocabulary: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.positions, std=INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map integers ``(batch, length)``, at most ``context`` long, to ``(batch, length, width)``."""
        length, context = tokens.shape[1], len(self.positions)
        if length > context:  # a single position would be broadcast
            raise InputError(
                "char_transformer: tokens", f"{length} in a row", f"at most the context, {context}"
            )
        embedded: Tensor = self.dropout(self.tokens(tokens) + self.positions[:length])
        return embedded


def char_transformer(
    vocabulary: int, context: int, width: int, depth: int, heads: int, dropout: float = 0.0
) -> nn.Sequential:
    """Return a causal pre-norm transformer that predicts the next token at every position.

    The embedding, every block, and the head (normalisation, linear layer) are one stage each. Input and
    output weights are not tied, since they belong to different blocks.

    Parameters
    ----------
    vocabulary
        Different tokens; the output is logits, shape ``(batch, length, vocabulary)``.
    context
        Longest sequence.
    width, depth, heads
        Features of a token, blocks, and attention heads; ``width`` is a multiple of ``heads``.
    dropout
        Probability of dropping an embedding, an attention weight, or what a block adds to the stream.

    Raises
    ------
    ValueError
        The heads don't divide the width.
    """
    model = nn.Sequential(
        TokenEmbedding(vocabulary, context, width, dropout),
        *(EncoderBlock(width, heads, _MLP_RATIO, dropout, causal=True) for _ in range(depth)),
        nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary)),
    )
    initialise(model, depth)
    return model
