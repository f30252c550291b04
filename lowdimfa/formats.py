"""How activations travel from block to block: in fewer bytes than those in which layers compute.

A format packs a tensor into another one, which also has the samples first, and unpacks it. What comes back depends on
the tensor alone, not on those before it or on random numbers. So there is nothing to keep in a checkpoint, and a block
in this process gets the same bits as a neighbour in another one. For the same reason no error is carried over from one
micro-batch to the next: it would be added to other samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lowdimfa.config import Activations, RankConfig
from lowdimfa.values import TensorType

_SCALE_BYTES = 3
"""Of a group of integers: a scale of two bytes, and the integer that stands for zero."""

_UP = 1 + 2.0**-8
"""By so much a scale grows before it is rounded to bfloat16, so that no value lies beyond the last integer."""

_TINY = torch.finfo(torch.float32).tiny

Shape = tuple[int, ...]


class Format(Protocol):
    """A way to write tensors of floating-point numbers."""

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether tensors of this type are packed; others travel as they are."""

    def packed(self, shape: Shape) -> TensorType:
        """Return the whole type of what a tensor of a shape, the samples first, is packed into."""

    def largest(self, shape: Shape) -> int:
        """Return the bytes that no tensor takes that has at most as many samples."""

    def pack(self, tensor: Tensor) -> Tensor:
        """Pack a tensor of shape ``(samples, …)``. Where it isn't finite, what comes back isn't either."""

    def unpack(self, packed: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the tensor of a shape and type that was packed, as far as the format keeps it."""


def format_of(activations: Activations | RankConfig) -> Format | None:
    """Return the format that a setting names, or None for tensors that travel as they are."""
    if isinstance(activations, RankConfig):
        return Factors(activations.rank)
    formats: dict[str, Format] = {"bf16": Halves(), "int8": INT8, "int4": INT4}
    return formats.get(activations)


def nbytes(kind: TensorType) -> int:
    """Return the bytes of a tensor of a whole type."""
    return math.prod(kind.shape) * kind.dtype.itemsize


@dataclass(frozen=True)
class Halves:
    """bfloat16 in place of float32: half the bytes, and 8 bits of each number's precision."""

    def __str__(self) -> str:
        return "bf16"

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it is float32."""
        return dtype == torch.float32

    def packed(self, shape: Shape) -> TensorType:
        """Return the same shape with the other type."""
        return TensorType(shape, torch.bfloat16)

    def largest(self, shape: Shape) -> int:
        """Return the bytes of that many samples."""
        return nbytes(self.packed(shape))

    def pack(self, tensor: Tensor) -> Tensor:
        """Round a tensor."""
        return tensor.bfloat16()

    def unpack(self, packed: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Widen a tensor."""
        return packed.to(dtype)


@dataclass(frozen=True)
class Integers:
    """Integers of 8 or 4 bits, with a scale for each group of neighbouring values of a sample.

    A group's integers divide the range of its values, which is taken to include 0, into equal steps, and one of them is
    0 exactly: what rectifiers have made zero stays that, and takes no integer for negative values. No value moves by more
    than half a step.

    Parameters
    ----------
    bits
        8 or 4.
    group
        Most values that share a scale.
    """

    bits: int
    group: int

    def __str__(self) -> str:
        return f"int{self.bits}"

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it is a floating-point type."""
        return dtype.is_floating_point

    def packed(self, shape: Shape) -> TensorType:
        """Return the type of the bytes: each sample has its own."""
        groups, size = self._groups(shape)
        return TensorType((shape[0], groups * (_SCALE_BYTES + size * self.bits // 8)), torch.uint8)

    def largest(self, shape: Shape) -> int:
        """Return the bytes of that many samples."""
        return nbytes(self.packed(shape))

    def pack(self, tensor: Tensor) -> Tensor:
        """Pack a tensor of shape ``(samples, …)``."""
        groups, size = self._groups(tuple(tensor.shape))
        if not tensor.numel():
            kind = self.packed(tuple(tensor.shape))
            return tensor.new_empty(kind.shape, dtype=kind.dtype)
        values = tensor.reshape(len(tensor), -1).float()
        if values.shape[1] < groups * size:
            values = functional.pad(values, (0, groups * size - values.shape[1]))
        values = values.view(-1, groups, size)
        low = values.amin(-1, keepdim=True).clamp_(max=0)
        high = values.amax(-1, keepdim=True).clamp_(min=0)
        last = 2**self.bits - 1
        scale = ((high / last - low / last) * _UP).bfloat16()
        step = scale.float().clamp_(min=_TINY)
        zero = (-low / step).round_()
        integers = (values / step).round_().add_(zero).clamp_(0, last).to(torch.uint8).flatten(1)
        if self.bits == 4:
            first, second = integers.chunk(2, 1)
            integers = first | second << 4
        return torch.cat([scale.flatten(1).view(torch.uint8), zero.flatten(1).to(torch.uint8), integers], 1)

    def unpack(self, packed: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the tensor that was packed, each value within half a step."""
        groups, size = self._groups(shape)
        if not math.prod(shape):
            return packed.new_empty(shape, dtype=dtype)
        scales, zeros, integers = torch.tensor_split(packed, (2 * groups, _SCALE_BYTES * groups), dim=1)
        if self.bits == 4:
            integers = torch.cat([integers & 15, integers >> 4], 1)
        scale = scales.flatten().clone().view(torch.bfloat16).view(-1, groups, 1).float()
        values = integers.float().view(-1, groups, size).sub_(zeros[..., None]).mul_(scale)
        kept = values.flatten(1)[:, : math.prod(shape[1:])].contiguous()
        return kept.view(shape).to(dtype)

    def _groups(self, shape: Shape) -> tuple[int, int]:
        """Return into how many groups a sample's values go, and for how many each has room, an even number."""
        values = math.prod(shape[1:])
        groups = -(-values // self.group)
        return groups, 2 * -(-values // (2 * groups)) if groups else 0


INT8, INT4 = Integers(8, 256), Integers(4, 64)


@dataclass(frozen=True)
class Factors:
    """Two factors of low rank, of the matrix with a row for each position of each sample and a column for each feature.

    The second one is an orthonormal basis of the features, from one step of subspace iteration on the tensor itself
    (Halko, Martinsson and Tropp 2011, algorithm 4.4), from fixed random numbers; the first one is what each position has
    along it. Both travel as `INT8`. What they don't make smaller travels so itself.

    Parameters
    ----------
    rank
        Numbers that stand for the features of a position.
    """

    rank: int

    def __str__(self) -> str:
        return f"rank {self.rank}"

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it is a floating-point type."""
        return dtype.is_floating_point

    def packed(self, shape: Shape) -> TensorType:
        """Return the type of the bytes: each sample has its own numbers, and a part of the basis."""
        plain = INT8.packed(shape)
        if not math.prod(shape):
            return plain
        width = sum(self._widths(shape))
        return TensorType((shape[0], width), torch.uint8) if width < plain.shape[1] else plain

    def largest(self, shape: Shape) -> int:
        """Return the bytes of that many samples, each with a byte that may be empty in its part of the basis."""
        if not math.prod(shape):
            return 0
        own, basis = self._widths(shape)[0], nbytes(self._basis(shape))
        return min(INT8.largest(shape), shape[0] * (own + 1) + basis)

    def pack(self, tensor: Tensor) -> Tensor:
        """Pack a tensor of shape ``(samples, …)``."""
        shape = tuple(tensor.shape)
        if self._is_plain(shape):
            return INT8.pack(tensor)
        rows = _rows(tensor.float())
        basis = INT8.pack(_leading(rows, self.rank))
        sent = INT8.unpack(basis, (self.rank, rows.shape[1]), rows.dtype)
        own = INT8.pack((rows @ sent.T).view(shape[0], -1))
        _, width = self._widths(shape)
        parts = functional.pad(basis.flatten(), (0, shape[0] * width - basis.numel()))
        return torch.cat([own, parts.view(shape[0], -1)], 1)

    def unpack(self, packed: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the product of the factors."""
        if self._is_plain(shape):
            return INT8.unpack(packed, shape, dtype)
        positions, features = _matrix(shape)
        own, parts = torch.tensor_split(packed, self._widths(shape)[:1], dim=1)
        kind = self._basis(shape)
        basis = parts.flatten()[: nbytes(kind)].view(kind.shape)
        left = INT8.unpack(own, (shape[0], positions * self.rank), torch.float32)
        right = INT8.unpack(basis, (self.rank, features), torch.float32)
        return _shaped(left.view(-1, self.rank) @ right, shape).to(dtype)

    def _is_plain(self, shape: Shape) -> bool:
        return self.packed(shape) == INT8.packed(shape)

    def _widths(self, shape: Shape) -> list[int]:
        """Return the bytes that a sample has of its own, and of the basis."""
        positions, _ = _matrix(shape)
        own = INT8.packed((1, positions * self.rank)).shape[1]
        return [own, -(-nbytes(self._basis(shape)) // shape[0])]

    def _basis(self, shape: Shape) -> TensorType:
        return INT8.packed((self.rank, _matrix(shape)[1]))


def _matrix(shape: Shape) -> tuple[int, int]:
    """Return positions and features of a sample: a feature map has its channels first, all else its features last."""
    own = shape[1:] or (1,)
    features = own[0] if len(own) > 2 else own[-1]
    return math.prod(own) // features, features


def _rows(tensor: Tensor) -> Tensor:
    """Return the matrix of a tensor."""
    if tensor.dim() > 3:
        tensor = tensor.flatten(2).transpose(1, 2)
    return tensor.reshape(-1, tensor.shape[-1])


def _shaped(rows: Tensor, shape: Shape) -> Tensor:
    """Return the tensor of a matrix."""
    if len(shape) > 3:
        return rows.view(shape[0], -1, shape[1]).transpose(1, 2).contiguous().view(shape)
    return rows.view(shape)


def _leading(rows: Tensor, rank: int) -> Tensor:
    """Return orthonormal rows, shape ``(rank, features)``, near the leading right singular vectors of a matrix."""
    found = rows @ _start(rows.shape[1], rank).to(rows.device)
    found = found / found.abs().amax().clamp_(min=_TINY)  # its square would leave the range of float32 sooner
    basis: Tensor = torch.linalg.qr(rows.T @ found).Q
    return basis.T


@lru_cache(16)
def _start(features: int, rank: int) -> Tensor:
    return torch.randn(
        features, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
