"""Vision transformers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.models.transformer import INITIAL_STD, EncoderBlock, initialise


class PatchEmbedding(nn.Module):
    """Cut an image into patches, map each to a token, and add learned positions."""

    residual_stream: ClassVar[bool] = True
    cut_after: ClassVar[bool] = False

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels don't tile an image of {image_size}")
        self.image_size = image_size
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.empty((image_size // patch_size) ** 2, width))
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.positions, std=INITIAL_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(batch, channels, image_size, image_size)`` to ``(batch, tokens, width)``."""
        size = self.image_size
        if images.shape[-2:] != (size, size):  # of a single patch, its position would be broadcast
            found = f"images of {images.shape[-2]} by {images.shape[-1]} pixels"
            raise InputError("vit: images", found, f"{size} by {size}, for which the model was made")
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        embedded: Tensor = self.dropout(tokens + self.positions)
        return embedded


class TokenMean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to ``(batch, width)``."""
        return x.mean(1)


def vit(
    image_size: int,
    patch_size: int,
    in_channels: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a pre-norm vision transformer (Dosovitskiy et al., arXiv:2010.11929) that averages its tokens.

    The embedding, every encoder block, and the head (normalisation, mean over tokens, linear layer) are one
    stage each.

    Parameters
    ----------
    image_size, in_channels
        Of the input, shape ``(batch, in_channels, image_size, image_size)``.
    patch_size
        Pixels along a patch; a divisor of ``image_size``.
    width, depth, heads
        Features of a token, encoder blocks, and attention heads; ``width`` is a multiple of ``heads``.
    classes
        Outputs per sample.
    mlp_ratio
        Hidden units of a block's perceptron, in multiples of ``width``.
    dropout
        Probability of dropping an embedding, an attention weight, or what a block adds to the stream.

    Raises
    ------
    ValueError
        The patches don't tile the image, or the heads don't divide the width.
    """
    head = nn.Sequential(nn.LayerNorm(width), TokenMean(), nn.Linear(width, classes))
    model = nn.Sequential(
        PatchEmbedding(image_size, patch_size, in_channels, width, dropout),
        *(EncoderBlock(width, heads, mlp_ratio, dropout, causal=False) for _ in range(depth)),
        head,
    )
    initialise(model, depth)
    return model
