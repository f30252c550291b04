"""Tensors as raw little-endian buffers, and back, with every field checked before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.v1 import tensors_pb2 as pb
from lowdimfa.values import CARRIED

MAX_DIMENSIONS = 8
MAX_TENSOR_BYTES = 1 << 40
"""Beyond what any machine holds: nothing that is announced may be more. What a stream may bring, its limit says."""

_CODES: dict[torch.dtype, pb.Dtype] = {
    dtype: getattr(pb, f"DTYPE_{str(dtype).removeprefix('torch.').upper()}") for dtype in CARRIED
}
_DTYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in _CODES.items()}


def dtype_code(dtype: torch.dtype) -> pb.Dtype:
    """Return the protocol's code of an element type.

    Raises
    ------
    ProtocolError
        The protocol has no such type.
    """
    if dtype not in _CODES:
        known = ", ".join(dtype_name(known) for known in _CODES)
        raise ProtocolError(f"a tensor of {dtype_name(dtype)} can't be sent; the protocol has {known}")
    return _CODES[dtype]


def dtype_of(code: int) -> torch.dtype:
    """Return the element type of a protocol's code.

    Raises
    ------
    ProtocolError
        The code is unknown.
    """
    if code not in _DTYPES:
        raise ProtocolError(f"unknown element type {code}")
    return _DTYPES[code]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of an element type without its package: ``float32``."""
    return str(dtype).removeprefix("torch.")


def encode(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, row-major and little-endian.

    The view shares the memory of a contiguous CPU tensor: copy it before the tensor is written again.

    Raises
    ------
    ProtocolError
        The element type has no code.
    """
    dtype_code(tensor.dtype)
    return memoryview(_bytes_of(tensor.detach().cpu().contiguous()))  # type: ignore[arg-type]


class TensorBuffer:
    """A tensor that is filled as its bytes arrive.

    Its memory is torch's own, never the message's: the alignment of a buffer can change the bits of a CPU
    matrix product, and a run has to give the same bits wherever its blocks are.

    Parameters
    ----------
    dtype, shape
        Code of the element type, and shape, as announced.

    Raises
    ------
    ProtocolError
        The type is unknown, there are more than 8 dimensions, one is negative, or the size exceeds `MAX_TENSOR_BYTES`.
    """

    def __init__(self, dtype: int, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.dtype, self.nbytes = layout(dtype, self.shape)
        self._tensor = torch.empty(self.shape, dtype=self.dtype)
        self._bytes = _bytes_of(self._tensor)
        self._filled = 0

    @property
    def missing(self) -> int:
        """Bytes that have not arrived."""
        return self.nbytes - self._filled

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, at most as many as are missing."""
        if len(data) > self.missing:
            raise ProtocolError(f"{len(data)} bytes for a tensor of which {self.missing} are missing")
        if data:
            # numpy lets other threads run while it copies; a memoryview would hold them up.
            self._bytes[self._filled : self._filled + len(data)] = numpy.frombuffer(data, numpy.uint8)
            self._filled += len(data)

    def tensor(self) -> Tensor:
        """Return the complete tensor.

        Raises
        ------
        ProtocolError
            Bytes are missing, or a boolean is neither 0 nor 1.
        """
        if self.missing:
            raise ProtocolError(f"a tensor of {self.nbytes} bytes came with {self._filled}")
        if self.dtype == torch.bool and bool((self._bytes > 1).any()):
            raise ProtocolError("a boolean tensor holds bytes other than 0 and 1")
        return self._tensor


@lru_cache(64)
def layout(code: int, shape: tuple[int, ...]) -> tuple[torch.dtype, int]:
    """Return the element type and the size in bytes of what is announced: in a run the same few again and again.

    Raises
    ------
    ProtocolError
        As for `TensorBuffer`.
    """
    dtype = dtype_of(code)
    if len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"a tensor of {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    # An empty tensor must not claim sizes that torch can't hold either.
    extent = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if min(shape, default=0) < 0 or extent > MAX_TENSOR_BYTES:
        raise ProtocolError(f"a tensor of shape {shape}, negative or too large")
    return dtype, math.prod(shape) * dtype.itemsize


def _bytes_of(tensor: Tensor) -> NDArray[numpy.uint8]:
    """Return the memory of a contiguous CPU tensor. numpy takes a small part of the time that torch does for this."""
    found = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy has no such type
    return found.numpy().reshape(-1).view(numpy.uint8)
