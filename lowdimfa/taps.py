"""Taps: where in a block's output the feedback is delivered, and where its feedback weights are learned.

A tap is a local, differentiable function ``t(h)`` of a block's output ``h``. The low-dimensional error ``c`` enters
the block as ``∂/∂h ⟨Q c, t(h)⟩``. With the identity this is direct feedback (Hanut and Kadmon, arXiv:2502.20580);
the pooled and normalised taps go beyond the paper. Normalising makes the delivered error orthogonal to the scale of
the activity, so that ``h`` can't lower the loss by growing along ``Q c`` (which makes residual streams collapse).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.config import FactoryConfig
from lowdimfa.errors import InputError
from lowdimfa.generators import reproducible
from lowdimfa.layout import keeping_layout
from lowdimfa.rules import TAPS
from lowdimfa.tickets import derive_seed

_EPSILON = 1e-5  # added to the variance by which a tap normalises


class Tap(ABC):
    """The base of all taps: a function of a block's output that has no state. One of your own defines `__call__`.

    A tap is made for every site and called in every forward pass, so that autograd carries what is delivered at its
    value through it into the block's layers. Random draws in it are seeded with the micro-batch.

    Parameters
    ----------
    position_dims
        How many dimensions after the batch have an error vector of their own: 0 for one error per sample, 1 for one
        per token.
    """

    def __init__(self, position_dims: int = 0) -> None:
        self.position_dims = position_dims

    @property
    def name(self) -> str:
        """What a specification asks for this tap with: a name, or an import path."""
        return TAPS.name_of(type(self))

    @abstractmethod
    def __call__(self, output: Tensor) -> Tensor:
        """Return ``t(h)``, differentiable in ``h``.

        Parameters
        ----------
        output
            ``h``, shape ``(batch, *positions, …)``, of the type of the block's output.

        Returns
        -------
        Tensor
            float32, shape ``(batch, *positions, features)``. The number of features depends on the output's shape
            alone, each sample's value on that sample.
        """

    def features(self, output_shape: Sequence[int]) -> int:
        """Return the number of features of the tap for an output of the given shape (without the batch)."""
        return self(torch.zeros(1, *output_shape, dtype=torch.float32, device="cpu")).shape[-1]

    def keeps_places(self, output_shape: Sequence[int]) -> bool:
        """Return whether the tap has features for every pixel or token of an output (of the shape without batch)."""
        inner = output_shape[self.position_dims :]
        return len(inner) > 1 and self.features(output_shape) >= math.prod(inner)

    @torch.no_grad()
    def perturb(
        self, output: Tensor, noise_scale: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Add noise to a block's output in a probe, and return how the tap's value moves.

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
            The noisy output, and the change of the tap, shape ``(batch, *positions, features)``.
        """
        noise = self._scale(output, noise_scale) * _drawn(output.shape, generator)
        perturbed = output + noise.to(output.dtype)
        return perturbed, self(perturbed) - self(output)

    def _scale(self, output: Tensor, noise_scale: float) -> Tensor:
        inner = tuple(range(1 + self.position_dims, output.dim()))
        return output.float().std(dim=inner, keepdim=True, correction=0) * noise_scale


class FlatTap(Tap):
    """The flat output itself; pooled or normalised in the classes derived from it.

    Attributes
    ----------
    pooled
        Average over what lies between positions and features: pixels of a feature map, tokens of a sequence.
    normalised
        Layer normalisation without parameters over all features of the tap.
    """

    pooled: ClassVar[bool] = False
    normalised: ClassVar[bool] = False

    def __call__(self, output: Tensor) -> Tensor:
        """Return ``t(h)`` in float32, shape ``(batch, *positions, features)``."""
        tapped = keeping_layout(self._pool(output.float())).flatten(1 + self.position_dims)
        return functional.layer_norm(tapped, tapped.shape[-1:], eps=_EPSILON) if self.normalised else tapped

    def keeps_places(self, output_shape: Sequence[int]) -> bool:
        """Return whether the tap has features for every pixel or token of an output (of the shape without batch)."""
        return not self.pooled and len(output_shape) - self.position_dims > 1

    def perturb(
        self, output: Tensor, noise_scale: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Add noise as `Tap.perturb` does, and return the change of the tap to first order.

        A normalised tap's change is given before its mean and its scale are taken out, which delivery does.
        A pooled tap has the same noise at every pixel or token it averages, which lowers the variance of the estimate
        that is made of it.
        """
        start = 1 + self.position_dims
        pooled = self._pool(output.float(), keepdim=True)
        noise = _drawn(pooled.shape, generator) * self._scale(output, noise_scale)
        moved = noise.flatten(start)
        if self.normalised:
            variance = pooled.flatten(start).var(-1, keepdim=True, correction=0)
            moved = moved * (variance + _EPSILON).rsqrt()
        return output + self._spread(noise, output.shape).to(output.dtype), moved

    def _pool(self, output: Tensor, keepdim: bool = False) -> Tensor:
        dims = self._pooled_dims(output.dim())
        return output.mean(dims, keepdim=keepdim) if dims else output

    def _spread(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        """Return noise for each feature of the tap as noise for an output of that shape, or what broadcasts to it."""
        return noise

    def _pooled_dims(self, dims: int) -> tuple[int, ...]:
        inner = dims - 1 - self.position_dims
        if not self.pooled or inner < 2:
            return ()
        if inner == 2:  # tokens before features
            return (dims - 2,)
        return tuple(range(dims - inner + 1, dims))  # channels before pixels


class PooledTap(FlatTap):
    """The mean over pixels or tokens."""

    pooled = True


class NormalisedTap(FlatTap):
    """The flat output after a layer norm without parameters."""

    normalised = True


class PooledNormalisedTap(PooledTap, NormalisedTap):
    """The mean over pixels or tokens after that layer norm."""


def choose_tap(
    given: str | FactoryConfig, output_shape: Sequence[int], position_dims: int, residual: bool
) -> Tap:
    """Return the tap that a setting names; ``auto`` picks by shape and by whether the block ends in a residual stream.

    Parameters
    ----------
    given
        As in the specification.
    output_shape
        Of the block, without the batch.
    position_dims
        0 for one error per sample, 1 for one per token.
    residual
        Whether the block's last layer adds to a residual stream.

    Raises
    ------
    InputError
        It can't be made, or can't take such an output.
    """
    if given == "auto":
        if residual and len(output_shape) - position_dims == 2:  # of tokens
            return PooledNormalisedTap(position_dims)
        grid, whole = TAPS.find("grid-normalised")(position_dims), NormalisedTap(position_dims)
        return grid if grid.features(output_shape) < whole.features(output_shape) else whole
    seed = derive_seed(0, "tap")  # alike wherever the plan is made
    tap = TAPS.make(given, seed, position_dims)
    shape = tuple(output_shape)
    learned = [name for name, value in vars(tap).items() if isinstance(value, nn.Module | nn.Parameter)]
    if learned:
        raise InputError(
            TAPS.key,
            f"{tap.name!r}, which has parameters of its own in {learned[0]!r}",
            "a function of the output that has no state: nothing would train or save them",
        )
    with (
        TAPS.trying(type(tap), f"on outputs of shape {shape} per sample"),
        reproducible(seed),
        torch.enable_grad(),
    ):
        found: object = tap(torch.zeros(2, *shape, requires_grad=True))
    before = (2, *shape[:position_dims])
    if not isinstance(found, Tensor) or found.dtype != torch.float32 or found.shape[:-1] != before:
        returned = (
            f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        )
        raise InputError(
            TAPS.key,
            f"{tap.name!r}, which makes {returned} of 2 outputs of shape {shape}",
            f"torch.float32 of shape ({', '.join(map(str, before))}, features)",
        )
    if not found.requires_grad:
        raise InputError(
            TAPS.key,
            f"{tap.name!r}, whose value autograd can't trace back to the output",
            "a differentiable tap, since what is delivered at its value reaches the layers through it",
        )
    return tap


def _drawn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device=generator.device)
