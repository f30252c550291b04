"""Reading a checkpoint: nothing in it is believed before it has been checked.

A checkpoint is a directory with a ``manifest.json`` and one safetensors file per block. Tensors are found by
name across all files, so that a run can go on with other block boundaries than those that wrote them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowdimfa.average import PREFIX
from lowdimfa.encoding import tensor_name
from lowdimfa.errors import InputError
from lowdimfa.services.run.tensor_file import TYPES, Kind, write_tensors

MANIFEST_FILE = "manifest.json"
MODEL_PREFIX = "model/"

_LONGEST_REASON = 200
_OF_TORCH = (RuntimeError, TypeError, ValueError, OverflowError, AttributeError)
"""What torch raises for types and shapes that a file's header may have but no tensor can."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BlockEntry(_Record):
    """What the manifest says of one block's file: its name, digest and size, and what lies in it."""

    block: int = Field(ge=0)
    file: str = Field(pattern=r"^block-[0-9]+\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    layers: list[str]
    tensors: list[str]
    scalars: dict[str, Any]


class ManifestFile(_Record):
    """The contents of ``manifest.json``; ``format`` is its version."""

    format: Literal[1] = 1
    step: int = Field(ge=0)
    meta: dict[str, Any]
    blocks: list[BlockEntry]


@dataclass
class DamagedError(Exception):
    """A file of a checkpoint is not what it should be; the store makes it an `InputError` with a way out."""

    file: Path
    found: str
    expected: str


@dataclass(frozen=True)
class Manifest:
    """One checkpoint whose manifest, files, sizes and digests have been verified.

    Attributes
    ----------
    step
        Optimiser steps applied when it was written.
    path
        Its directory.
    meta
        What the trainer noted about the run.
    entries
        One per block, in the order of the blocks.
    """

    step: int
    path: Path
    meta: Mapping[str, Any]
    entries: Sequence[BlockEntry]

    @classmethod
    def read(cls, path: Path, step: int) -> Manifest:
        """Read and verify the checkpoint of one step.

        Raises
        ------
        DamagedError
            A file is missing, not plain, of another size or digest, malformed, or not as the manifest says.
        """
        file = path / MANIFEST_FILE
        try:
            contents = ManifestFile.model_validate_json(file.read_bytes())
        except OSError as error:
            raise DamagedError(file, error.strerror or "no manifest", "a readable manifest") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole file"
            found = f"at {place[:_LONGEST_REASON]}: {first['msg'][:_LONGEST_REASON]}"
            raise DamagedError(file, found, "a manifest of format 1") from error
        if contents.step != step:
            raise DamagedError(file, f"step {contents.step}", f"step {step}, as its directory says")
        if not all(entry.layers for entry in contents.blocks):
            raise DamagedError(file, "a block without layers", "the names of each block's layers")
        blocks, files = [entry.block for entry in contents.blocks], [entry.file for entry in contents.blocks]
        names = [name for entry in contents.blocks for name in entry.tensors]
        if any(len(set(listed)) < len(listed) for listed in (blocks, files, names)):
            raise DamagedError(file, "a block, file or tensor listed twice", "each listed once")
        for entry in contents.blocks:
            try:
                _verify(path / entry.file, entry)
            except OSError as error:  # a bad sector, for example
                found = error.strerror or str(error)
                raise DamagedError(path / entry.file, found, "a readable file") from error
        entries = sorted(contents.blocks, key=lambda entry: entry.block)
        return cls(step, path, contents.meta, entries)

    def tensors(self, select: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the tensors whose names are selected, from whichever files hold them, on the CPU."""
        found: dict[str, Tensor] = {}
        for entry in self.entries:
            if names := [name for name in entry.tensors if select(name)]:
                with _opened(self.path / entry.file) as file:
                    # Copies: the library's tensors live in the mapped file, which may be deleted meanwhile.
                    found |= {name: file.get_tensor(name).clone() for name in names}
        return found

    def kinds(self, select: Callable[[str], bool]) -> dict[str, Kind]:
        """Return type and shape of the tensors whose names are selected."""
        found: dict[str, Kind] = {}
        for entry in self.entries:
            with _opened(self.path / entry.file) as file:
                for name in filter(select, entry.tensors):
                    part = file.get_slice(name)
                    found[name] = Kind(part.get_dtype(), tuple(part.get_shape()))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the model, by its plain name."""
        kinds = self.kinds(lambda name: name.startswith(MODEL_PREFIX))
        return {name.removeprefix(MODEL_PREFIX): kind.shape for name, kind in kinds.items()}

    def require_same_model(self, parameter_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint of another model.

        Parameters
        ----------
        parameter_shapes
            The shape of everything that was saved under ``model/``, by its plain name.

        Raises
        ------
        InputError
            Names or shapes differ; the first few are named.
        """
        saved = self.shapes()
        differing = [
            name for name in {**parameter_shapes, **saved} if saved.get(name) != parameter_shapes.get(name)
        ]
        if differing:
            found = "; ".join(
                f"{name} {_words(saved.get(name))} there, {_words(parameter_shapes.get(name))} in the model"
                for name in differing[:3]
            )
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                str(self.path),
                f"another model ({found}{more})",
                "a checkpoint of this model",
                "Resume with the model that wrote it, or start a new run.",
            )


def export_state(manifest: Manifest, average: bool = False) -> dict[str, Tensor]:
    """Return the state dict of the plain model, as if it had never been cut into blocks, but for what is no tensor.

    With ``average``, trained weights are their moving average; an `InputError` if the checkpoint has none.
    """
    names = _exported(manifest, average)
    found = manifest.tensors(set(names.values()).__contains__)
    return {name: found[kept] for name, kept in names.items()}


def _exported(manifest: Manifest, average: bool = False) -> dict[str, str]:
    """Return the name in the checkpoint of each tensor in the plain model's state dict."""
    averages = [name for entry in manifest.entries for name in entry.tensors if name.startswith(PREFIX)]
    if average and not averages:
        hint = "Without --average its weights are taken."
        raise InputError(
            "--average", f"a checkpoint without ({manifest.path})", "a run with train.average", hint
        )
    saved = [name for entry in manifest.entries for name in entry.tensors if name.startswith(MODEL_PREFIX)]
    extra = {name: tensor_name(data) for name, data in extra_state(manifest).items()}
    return (
        {name.removeprefix(MODEL_PREFIX): name for name in saved}
        | {name: kept for name, kept in extra.items() if kept is not None}
        | ({name.removeprefix(PREFIX): name for name in averages} if average else {})
    )


def extra_state(manifest: Manifest) -> dict[str, Any]:
    """Return what modules keep as ``get_extra_state``, encoded, by its name in the plain state dict."""
    parts = [entry.scalars.get("extra") for entry in manifest.entries]
    return {name: data for part in parts if isinstance(part, dict) for name, data in part.items()}


def left_out(manifest: Manifest) -> list[str]:
    """Return the names in the plain model's state dict that `export_state` lacks, since they are no tensors."""
    return sorted(name for name, data in extra_state(manifest).items() if tensor_name(data) is None)


def export_file(manifest: Manifest, output: Path, average: bool = False) -> None:
    """Write the plain model's state dict as one safetensors file, whole or not at all, with memory for one tensor.

    Raises
    ------
    InputError
        The file can't be written there, or the checkpoint has no ``average``.
    """
    names = _exported(manifest, average)
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        kinds = manifest.kinds(set(names.values()).__contains__)
        write_tensors(
            partial,
            {name: kinds[kept] for name, kept in names.items()},
            lambda name: manifest.tensors(names[name].__eq__)[names[name]],
        )
        partial.replace(output)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(str(output), f"a path that can't be written ({error})", "a writable file") from error


def save_durably(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that survives a power cut once this returns."""
    write_tensors(path, {name: Kind.of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, entry: BlockEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise DamagedError(path, "no such plain file", "the file that the manifest lists")
    if (size := path.stat().st_size) != entry.bytes:
        raise DamagedError(path, f"{size} bytes", f"{entry.bytes} bytes")
    if (found := digest(path)) != entry.sha256:
        raise DamagedError(path, f"SHA-256 {found}", f"SHA-256 {entry.sha256}")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            strange = {file.get_slice(name).get_dtype() for name in names} - TYPES.keys()
    except SafetensorError as error:
        raise DamagedError(path, str(error), "a safetensors file") from error
    if names != set(entry.tensors):
        raise DamagedError(path, "other tensors", "the tensors that the manifest lists")
    if strange:
        raise DamagedError(path, f"numbers of type {min(strange)}", "types that a checkpoint is written with")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, *_OF_TORCH) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(str(path), reason[:_LONGEST_REASON], "tensors that torch can hold") from error


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
