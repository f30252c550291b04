"""Taps: where in a block's output the feedback is delivered, and where its feedback weights are learned.

A tap is a local, differentiable function ``t(h)`` of a block's output ``h``. The low-dimensional error ``c`` enters
the block as ``∂/∂h ⟨Q c, t(h)⟩``. With the identity this is direct feedback (Hanut and Kadmon, arXiv:2502.20580);
the pooled and normalised taps go beyond the paper. Normalising makes the delivered error orthogonal to the scale of
the activity, so that ``h`` can't lower the loss by growing along ``Q c`` (which makes residual streams collapse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

TapName = Literal["auto", "identity", "pooled", "normalised", "pooled-normalised"]

_EPSILON = 1e-5  # added to the variance by which a tap normalises


@dataclass(frozen=True)
class Tap:
    """A tap for outputs of one kind.

    Attributes
    ----------
    pooled
        Average over what lies between positions and features: pixels of a feature map, tokens of a sequence.
    normalised
        Layer normalisation without parameters over all features of the tap.
    position_dims
        How many dimensions after the batch have an error vector of their own: 0 for one error per sample, 1 for one
        per token.
    """

    pooled: bool
    normalised: bool
    position_dims: int = 0

    @property
    def name(self) -> str:
        """The name by which a specification asks for this tap."""
        words = [word for word, used in (("pooled", self.pooled), ("normalised", self.normalised)) if used]
        return "-".join(words) or "identity"

    def __call__(self, output: Tensor) -> Tensor:
        """Return ``t(h)`` in float32, shape ``(batch, *positions, features)``."""
        tapped = self._pool(output.float()).flatten(1 + self.position_dims)
        return functional.layer_norm(tapped, tapped.shape[-1:], eps=_EPSILON) if self.normalised else tapped

    def features(self, output_shape: Sequence[int]) -> int:
        """Return the number of features of the tap for an output of the given shape (without the batch)."""
        return self(torch.zeros(1, *output_shape)).shape[-1]

    def keeps_places(self, output_shape: Sequence[int]) -> bool:
        """Return whether the tap has features for every pixel or token of an output (of the shape without batch)."""
        return not self.pooled and len(output_shape) - self.position_dims > 1

    def perturb(
        self, output: Tensor, noise_scale: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Add noise to a block's output and return how the tap's value moves.

        Parameters
        ----------
        output
            Output of the block, shape ``(batch, *positions, …)``.
        noise_scale
            Standard deviation of the noise, relative to that of the features at each position.
        generator
            Source of the noise.

        Returns
        -------
        perturbed, moved
            The noisy output, and the first-order change of the tap, shape ``(batch, *positions, features)``.
            A normalised tap's change is given before its mean and its scale are taken out, which delivery does.
            A pooled tap has the same noise at every pixel or token it averages, which lowers the variance of the
            estimate that is made of it.
        """
        start = 1 + self.position_dims
        inner = tuple(range(start, output.dim()))
        scale = output.float().std(dim=inner, keepdim=True, correction=0) * noise_scale
        pooled = self._pool(output.float(), keepdim=True)
        noise = torch.randn(pooled.shape, generator=generator, device=output.device) * scale
        moved = noise.flatten(start)
        if self.normalised:
            variance = pooled.flatten(start).var(-1, keepdim=True, correction=0)
            moved = moved * (variance + _EPSILON).rsqrt()
        return output + noise.to(output.dtype), moved

    def _pool(self, output: Tensor, keepdim: bool = False) -> Tensor:
        dims = self._pooled_dims(output.dim())
        return output.mean(dims, keepdim=keepdim) if dims else output

    def _pooled_dims(self, dims: int) -> tuple[int, ...]:
        inner = dims - 1 - self.position_dims
        if not self.pooled or inner < 2:
            return ()
        if inner == 2:  # tokens before features
            return (dims - 2,)
        return tuple(range(dims - inner + 1, dims))  # channels before pixels


def choose_tap(name: TapName, output_shape: Sequence[int], position_dims: int, residual: bool) -> Tap:
    """Return the tap that ``name`` asks for; ``auto`` picks by shape and by whether the block ends in a residual stream.

    Parameters
    ----------
    name
        As in the specification.
    output_shape
        Of the block, without the batch.
    position_dims
        0 for one error per sample, 1 for one per token.
    residual
        Whether the block's last layer adds to a residual stream.
    """
    if name != "auto":
        return Tap("pooled" in name, "normalised" in name, position_dims)
    is_sequence = len(output_shape) - position_dims == 2
    return Tap(pooled=is_sequence and residual, normalised=True, position_dims=position_dims)
