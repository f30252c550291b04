"""Linear maps and convolutions, as the few products that the chain form is made of.

A map sends ``x`` to ``W x``; an error ``δ`` of its output becomes ``Q P δ`` at its input where backpropagation has
``Wᵀ δ``. The *kernel* is ``Q`` laid out as the weight of a map with ``r`` outputs, so that delivering an error through
it, and correlating an error with the input, are the products that backpropagation itself uses, only thinner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Size, Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

SPREAD = (math.sqrt(5) - 1) / 2
"""The golden section, whose multiples, modulo 1, are spread evenly however many there are."""


class Map(Protocol):
    """The products of one kind of map; ``groups`` independent maps side by side make a grouped convolution."""

    @property
    def groups(self) -> int:
        """How many independent maps."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the map's output."""

    def weight_gradient(self, x: Tensor, error: Tensor, shape: Size) -> Tensor:
        """Return the correlation of input and error, in the shape of a weight with as many outputs as the error."""

    def bias_gradient(self, error: Tensor) -> Tensor:
        """Return the sum of the errors of each output."""

    def project(self, error: Tensor, rows: Tensor) -> Tensor:
        """Return ``P δ``: the error with ``r`` numbers (for each group) in place of each output's."""

    def deliver(self, error: Tensor, kernel: Tensor, input_shape: Size) -> Tensor:
        """Return what an error becomes at the input through a kernel with as many outputs as the error."""

    def combine(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``P W``, a kernel, of a weight or of a gradient in its shape."""

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight, or a kernel, as matrices of shape ``(*groups, outputs, inputs)``."""

    def as_kernel(self, feedback: Tensor) -> Tensor:
        """Return the kernel of feedback weights ``Q`` (as the layer keeps them), or the reverse."""

    def count(self, error: Tensor) -> int:
        """Return how many error vectors there are: samples, times tokens or pixels."""

    def vectors(self, error: Tensor, limit: int | None) -> Tensor:
        """Return error vectors, at most so many, evenly spread; shape ``(*groups, vectors, outputs)``."""


@dataclass(frozen=True)
class LinearMap:
    """``x Wᵀ + b`` over the last dimension. ``P`` is ``(r, outputs)``, ``Q`` ``(inputs, r)``, the kernel ``Qᵀ``."""

    @property
    def groups(self) -> int:
        """One."""
        return 1

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x Wᵀ + b``."""
        return functional.linear(x, weight, bias)

    def weight_gradient(self, x: Tensor, error: Tensor, shape: Size) -> Tensor:
        """Return ``δᵀ x``, summed over samples and tokens."""
        return _matrix(error).t() @ _matrix(x)

    def bias_gradient(self, error: Tensor) -> Tensor:
        """Return the sum over samples and tokens."""
        return _matrix(error).sum(0)

    def project(self, error: Tensor, rows: Tensor) -> Tensor:
        """Return ``δ Pᵀ``."""
        return error @ rows.t()

    def deliver(self, error: Tensor, kernel: Tensor, input_shape: Size) -> Tensor:
        """Return ``c Qᵀ``."""
        return error @ kernel

    def combine(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``P W``."""
        return rows @ weight

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the same tensor."""
        return weight

    def as_kernel(self, feedback: Tensor) -> Tensor:
        """Return the transpose."""
        return feedback.t()

    def count(self, error: Tensor) -> int:
        """Return the number of samples times tokens."""
        return error.numel() // error.shape[-1]

    def vectors(self, error: Tensor, limit: int | None) -> Tensor:
        """Return vectors, shape ``(vectors, outputs)``."""
        vectors = _matrix(error)
        chosen = _choose(len(vectors), limit, error.device)
        return vectors if chosen is None else vectors[chosen]


@dataclass(frozen=True)
class ConvMap:
    """A two-dimensional convolution with zero padding.

    ``P`` is ``(groups, r, outputs / groups)``; ``Q`` is the kernel itself, ``(groups · r, inputs / groups, kh, kw)``:
    the weight of a transposed convolution from ``r`` channels for each group.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of ``(batch, channels, height, width)``."""
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def weight_gradient(self, x: Tensor, error: Tensor, shape: Size) -> Tensor:
        """Return the gradient of a kernel of the given shape."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        gradient: Tensor = conv2d_weight(x, shape, error, *geometry)  # type: ignore[no-untyped-call]
        return gradient

    def bias_gradient(self, error: Tensor) -> Tensor:
        """Return the sum over samples and pixels."""
        return error.sum((0, 2, 3))

    def project(self, error: Tensor, rows: Tensor) -> Tensor:
        """Mix each group's channels down to ``r``, pixel by pixel."""
        return functional.conv2d(error, rows.flatten(0, 1)[..., None, None], groups=self.groups)

    def deliver(self, error: Tensor, kernel: Tensor, input_shape: Size) -> Tensor:
        """Return the transposed convolution."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        delivered: Tensor = conv2d_input(input_shape, kernel, error, *geometry)  # type: ignore[no-untyped-call]
        return delivered

    def combine(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``P W`` of each group."""
        return (rows @ self.matrix(weight)).reshape(-1, *weight.shape[1:])

    def matrix(self, weight: Tensor) -> Tensor:
        """Return each group's weights, its inputs (channels times kernel size) in one dimension."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def as_kernel(self, feedback: Tensor) -> Tensor:
        """Return the same tensor."""
        return feedback

    def count(self, error: Tensor) -> int:
        """Return the number of samples times pixels."""
        return error.numel() // error.shape[1]

    def vectors(self, error: Tensor, limit: int | None) -> Tensor:
        """Return vectors of channels, shape ``(groups, vectors, outputs / groups)``."""
        pixels = error.shape[2] * error.shape[3]
        chosen = _choose(len(error) * pixels, limit, error.device)
        flat = error.flatten(2)
        vectors = flat.mT.flatten(0, 1) if chosen is None else flat[chosen // pixels, :, chosen % pixels]
        outputs = vectors.shape[1] // self.groups  # said, as a reshape of no vectors could not infer it
        return vectors.reshape(len(vectors), self.groups, outputs).transpose(0, 1)


def _matrix(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _choose(count: int, limit: int | None, device: torch.device) -> Tensor | None:
    """Return the indices of at most ``limit`` of ``count`` vectors, or None for all of them.

    Steps of the golden section reach samples and places alike, where a plain stride could meet the same pixel or
    token of every sample. Nothing is drawn, so that runs repeat.
    """
    if limit is None or count <= limit:
        return None
    step = round(SPREAD * count)
    while math.gcd(step, count) > 1:
        step += 1
    return torch.arange(limit, device=device) * step % count
