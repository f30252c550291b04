"""A safetensors file written tensor by tensor: the library reads back every bit, and it is the library's own file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowdimfa.encoding import same_bits
from lowdimfa.services.run.tensor_file import Kind, write_tensors

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn),
)


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    with path.open("wb") as file:
        write_tensors(file, {name: Kind.of(value) for name, value in tensors.items()}, tensors.__getitem__)
    return path


def test_the_library_reads_back_what_was_written(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(-3, 3).reshape(2, 3).to(dtype) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "across": torch.randn(4, 5).T}
    back = load_file(written(tensors, tmp_path / "a.safetensors"))
    assert back.keys() == tensors.keys()
    assert all(same_bits(back[name], value.contiguous()) for name, value in tensors.items())


def test_it_is_the_file_that_the_library_writes(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(5), "é": torch.ones(3, dtype=torch.bool)}
    save_file(tensors, tmp_path / "theirs")
    ours, theirs = written(tensors, tmp_path / "ours").read_bytes(), (tmp_path / "theirs").read_bytes()
    length = int.from_bytes(ours[:8], "little")
    assert ours[8 + length :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    value = torch.randn(4)
    back = load_file(written({"a": value, "b": value}, tmp_path / "a"))
    assert torch.equal(back["a"], value) and torch.equal(back["b"], value)


def test_a_tensor_that_is_another_when_it_is_read_is_refused() -> None:
    with pytest.raises(SafetensorError, match="changed"):
        write_tensors(io.BytesIO(), {"x": Kind("F32", (3,))}, lambda name: torch.zeros(4))
