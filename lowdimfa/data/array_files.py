"""Factory of data from NumPy's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.held_out import existing, with_test
from lowdimfa.data.splits import Split
from lowdimfa.errors import InputError
from lowdimfa.values import Inputs

Array = numpy.ndarray[Any, numpy.dtype[Any]]


@dataclass(frozen=True)
class ArraySplit:
    """Samples in arrays, which may be mapped from files: what isn't drawn isn't read."""

    input_arrays: dict[str, Array]
    target_array: Array

    def __len__(self) -> int:
        return len(self.target_array)

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of the given samples."""
        drawn = {name: _drawn(part, indices) for name, part in self.input_arrays.items()}
        return drawn.get("", drawn)

    def targets(self, indices: Tensor) -> Tensor:
        """Return the targets of the given samples."""
        return _drawn(self.target_array, indices)


def numpy_files(
    path: str,
    inputs: str | Sequence[str] = "inputs",
    targets: str = "targets",
    test: str | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Return samples of a ``.npz`` file, or of a folder of ``.npy`` files, which are mapped into memory.

    Parameters
    ----------
    path
        Of the file or folder.
    inputs, targets
        Names of the arrays, each with the samples first; of inputs several make inputs by name.
    test
        Path of the test samples, or what part of all samples they are.
    seed
        Decides which samples are in such a part.

    Raises
    ------
    InputError
        There is no such file or array, or it isn't of numbers, or has another number of samples.
    """
    if not inputs:
        raise InputError("numpy_files: inputs", repr(inputs), "the name of an array, or several")
    names = {"": inputs} if isinstance(inputs, str) else {name: name for name in inputs}

    def read(path: str) -> Split:
        where = existing(path, "numpy_files: path")
        arrays = {name: _array(where, name) for name in (*names.values(), targets)}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or array.ndim == 0:
                found = f"{name!r} of type {array.dtype} and shape {array.shape}"
                raise InputError(str(where), found, "numbers of at most 64 bits, with the samples first")
            if len(array) != len(arrays[targets]):
                found = f"{len(array)} samples of {name!r} and {len(arrays[targets])} of {targets!r}"
                raise InputError(str(where), found, "one target per input")
        return ArraySplit({key: arrays[name] for key, name in names.items()}, arrays[targets])

    return with_test("numpy_files", read, path, test, seed)


def _drawn(array: Array, indices: Tensor) -> Tensor:
    drawn = array[indices.numpy()]
    return torch.from_numpy(
        drawn.astype(drawn.dtype.newbyteorder("="), copy=False)
    )  # torch knows no other order


def _array(where: Path, name: str) -> Array:
    folder = where.is_dir()
    file = where / f"{name}.npy" if folder else where
    known = sorted(path.stem for path in where.glob("*.npy"))
    if folder and name not in known:
        raise _missing(where, name, known)
    try:
        found: Any = numpy.load(file, mmap_mode="r" if folder else None, allow_pickle=False)
        if isinstance(found, numpy.ndarray) != folder:
            raise ValueError("a single array" if not folder else "several arrays")
        if not folder and name not in found:
            raise _missing(where, name, list(found))
        array: Array = found if folder else found[name]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        expected = "a .npz file, or a folder of .npy files, of numbers"
        raise InputError(str(file), f"what can't be taken ({error})", expected) from error
    return array


def _missing(where: Path, name: str, known: list[str]) -> InputError:
    return InputError(str(where), f"no array {name!r}, but {', '.join(known) or 'none'}", "that it is there")
