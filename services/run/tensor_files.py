"""Named tensors in safetensors files that somebody wrote: found by name, read one by one, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowdimfa.errors import InputError

KEY = "model.weights"

_INDEX = "*.safetensors.index.json"
_EXPECTED = "a safetensors file, or a folder with some"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = "What is pickled can run code when it is read. Write it anew: safetensors.torch.save_file(state_dict, path)."
_PROBES, _PROBE_BYTES = 64, 4096
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class Entry(NamedTuple):
    """Where a tensor is, and what the file says that it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str


class TensorFiles:
    """A safetensors file, or the files of a folder, with or without an index.

    Parameters
    ----------
    path
        Of the file or folder.

    Attributes
    ----------
    entries
        All tensors by name.
    digest
        Of names, shapes, types, sizes and a sample of the contents: files of two machines are hardly the same by chance.

    Raises
    ------
    InputError
        There is no such path, or something else than safetensors files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        seen = hashlib.sha256()
        for file, names in _files_of(path).items():
            for name, entry in _entries(file).items():
                if name in self.entries and (names is None or name in names):
                    other = self.entries[name].file.name
                    raise InputError(
                        KEY, f"{name} in both {other} and {file.name} of {path}", "each name once"
                    )
                if names is None or name in names:
                    self.entries[name] = entry
            if absent := sorted((names or set()) - self.entries.keys()):
                raise InputError(
                    KEY, f"{file} without {absent[0]}", "the tensors that the folder's index names"
                )
            seen.update(_probe(file))
        self.digest = seen.hexdigest()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return some of the tensors; nothing else is read.

        Raises
        ------
        InputError
            A file can't be read any more.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.entries[name].file, []).append(name)
        found: dict[str, Tensor] = {}
        for path, wanted in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name) for name in wanted}
            except (OSError, SafetensorError) as error:
                raise _unreadable(path, error) from error
        return found


def _files_of(path: Path) -> dict[Path, set[str] | None]:
    """Return the files, and of each the names that an index gives it; None is all that it has."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise InputError(
            KEY,
            f"no {path} on {socket.gethostname()}",
            _EXPECTED,
            "On a cluster it has to be there, by this path, on every node with a block and on that of the trainer.",
        )
    indexes = sorted(path.glob(_INDEX))
    if len(indexes) > 1:
        raise InputError(KEY, f"{len(indexes)} indexes in {path}", "one", "Name a file.")
    if indexes:
        return _of_index(indexes[0])
    found = sorted(path.glob("*.safetensors"))
    if not found:
        pickled = sorted(one.name for one in path.iterdir() if one.suffix in _PICKLES)
        had = f" (it has {', '.join(pickled[:3])})" if pickled else ""
        raise InputError(KEY, f"no safetensors file in {path}{had}", _EXPECTED, _CONVERT if pickled else "")
    return dict.fromkeys(found)


def _of_index(index: Path) -> dict[Path, set[str] | None]:
    expected = "a mapping 'weight_map' of names to files beside it"
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in places.items():
            by_file.setdefault(file, set()).add(name)
        strange = next((file for file in by_file if not file or Path(file).name != file), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(KEY, f"{index}, which is no index ({type(error).__name__})", expected) from error
    if strange is not None:
        raise InputError(KEY, f"the file {strange!r} in {index}", expected)
    return {index.parent / file: names for file, names in sorted(by_file.items())}


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Entry] = {}
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_slice(name)
                kind = tensor.get_dtype()
                found[name] = Entry(path, tuple(tensor.get_shape()), _DTYPES.get(kind, kind))
            return found
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    hint = _CONVERT if path.suffix in _PICKLES else ""
    return InputError(KEY, f"{path}, which can't be read ({error})"[:500], _EXPECTED, hint)


def _probe(path: Path) -> bytes:
    """Return a digest of a file's size, its header and some places of it."""
    size = path.stat().st_size
    seen = hashlib.sha256(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        header = file.read(8)
        seen.update(header + file.read(int.from_bytes(header, "little")))
        for number in range(_PROBES):
            file.seek(number * size // _PROBES)
            seen.update(file.read(_PROBE_BYTES))
    return seen.digest()
