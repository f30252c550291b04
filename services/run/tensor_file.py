"""Writing a safetensors file one tensor after the other, so that none needs a copy and not all need be there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

_ALIGNMENT = 8


class Kind(NamedTuple):
    """Type and shape of a tensor, the type as the format calls it."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        """Return the kind of a tensor.

        Raises
        ------
        SafetensorError
            The format has no name for its type.
        """
        name = next((name for name, (dtype, _) in TYPES.items() if dtype == tensor.dtype), None)
        if name is None:
            raise SafetensorError(f"the format has no {tensor.dtype}")
        return cls(name, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return prod(self.shape) * TYPES[self.dtype][1]


def write_tensors(file: BinaryIO, kinds: Mapping[str, Kind], read: Callable[[str], Tensor]) -> None:
    """Write the contents of a safetensors file.

    Parameters
    ----------
    file
        Where they go.
    kinds
        Of all tensors, by name.
    read
        Returns one of them, on any device; it is asked for each once.
    """
    # The widest numbers first, as the format's own writer does: so all lie at multiples of their size.
    names = sorted(kinds, key=lambda name: (-TYPES[kinds[name].dtype][1], name))
    header, offset = {}, 0
    for name in names:
        end = offset + kinds[name].nbytes
        header[name] = {
            "dtype": kinds[name].dtype,
            "shape": kinds[name].shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        tensor = read(name).detach().cpu().contiguous()
        if Kind.of(tensor) != kinds[name]:
            raise SafetensorError(f"{name} changed while it was written")
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


TYPES = {
    "F64": (torch.float64, 8),
    "I64": (torch.int64, 8),
    "U64": (torch.uint64, 8),
    "C64": (torch.complex64, 8),
    "F32": (torch.float32, 4),
    "I32": (torch.int32, 4),
    "U32": (torch.uint32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "I16": (torch.int16, 2),
    "U16": (torch.uint16, 2),
    "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1),
    "BOOL": (torch.bool, 1),
    "F8_E4M3": (torch.float8_e4m3fn, 1),
    "F8_E5M2": (torch.float8_e5m2, 1),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, 1),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, 1),
}
"""The types that are written: how torch calls each, and its bytes."""
