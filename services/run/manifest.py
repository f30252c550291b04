"""Reading a checkpoint: nothing in it is believed before it has been checked.

A checkpoint is a directory with a ``manifest.json`` and one safetensors file per block. Tensors are found by
name across all files, so that a run can go on with other block boundaries than those that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowdimfa.average import PREFIX
from lowdimfa.encoding import tensor_name
from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint_files import (
    OLDER,
    BlockEntry,
    DamagedError,
    Fetched,
    Record,
    file_in,
    verify_files,
)
from lowdimfa.services.run.objects import ObjectsError
from lowdimfa.services.run.storage import Folder, Place
from lowdimfa.services.run.tensor_file import TYPES, Kind, write_tensors

MANIFEST_FILE = "manifest.json"
MODEL_PREFIX = "model/"

_LONGEST_REASON = 200
_OF_TORCH = (RuntimeError, TypeError, ValueError, OverflowError, AttributeError)
"""What torch raises for types and shapes that a file's header may have but no tensor can."""


class ManifestFile(Record):
    """The contents of ``manifest.json``; ``format`` is its version."""

    format: Literal[1] = 1
    step: int = Field(ge=0)
    meta: dict[str, Any]
    blocks: list[BlockEntry]

    def text(self) -> bytes:
        """Return the contents, which can be read again: others must not take an older checkpoint's place.

        Raises
        ------
        InputError
            They can't be.
        """
        try:
            # Not pydantic's own JSON, which writes null for infinity, a scheduler's usual "best so far".
            text = json.dumps(self.model_dump(), indent=1).encode()
            self.model_validate_json(text)
        except (ValueError, TypeError, RecursionError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise InputError(
                f"the checkpoint of step {self.step}",
                f"state that can't be read back ({why[:_LONGEST_REASON]})",
                "whole characters and no deep nesting in what optimizers, schedulers and modules keep",
            ) from error
        return text


@dataclass(frozen=True)
class Manifest:
    """One checkpoint whose manifest, files, sizes and digests have been verified.

    Of one in an object store, digests are verified when a file is wanted; so they are elsewhere if read ``lazily``.

    Attributes
    ----------
    step
        Optimiser steps applied when it was written.
    path
        Its directory, or its address.
    meta
        What the trainer noted about the run.
    entries
        One per block, in the order of the blocks.
    """

    step: int
    path: Place
    meta: Mapping[str, Any]
    entries: Sequence[BlockEntry]
    _fetched: Fetched | None = field(default=None, repr=False, compare=False)
    _unverified: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def read(cls, source: Path | Fetched, step: int, lazily: bool = False) -> Manifest:
        """Read and verify the checkpoint of one step.

        Parameters
        ----------
        source
            Its directory, or what fetches its files.
        step
            Of which it should be.
        lazily
            Whether each block's file is verified only when something in it is wanted.

        Raises
        ------
        DamagedError
            A file is missing, not plain, of another size or digest, malformed, or not as the manifest says.
        """
        path = source if isinstance(source, Path) else source.place
        file = file_in(path, MANIFEST_FILE)
        try:
            text = source.read(MANIFEST_FILE) if isinstance(source, Fetched) else Path(file).read_bytes()
            contents = ManifestFile.model_validate_json(text)
        except ObjectsError:
            raise  # that a store can't be reached says nothing of what is in it
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
        later = lazily and isinstance(source, Path)
        if not later:
            verify_files(source, contents.blocks)
        entries = sorted(contents.blocks, key=lambda entry: entry.block)
        fetched = source if isinstance(source, Fetched) else None
        return cls(step, path, contents.meta, entries, fetched, set(files if later else ()))

    def tensors(self, select: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the tensors whose names are selected, from whichever files hold them, on the CPU."""
        found: dict[str, Tensor] = {}
        for entry in self.entries:
            if names := [name for name in entry.tensors if select(name)]:
                with self._opened(entry) as file:
                    # Copies: the library's tensors live in the mapped file, which may be deleted meanwhile.
                    found |= {name: file.get_tensor(name).clone() for name in names}
        return found

    def kinds(self, select: Callable[[str], bool]) -> dict[str, Kind]:
        """Return type and shape of the tensors whose names are selected."""
        found: dict[str, Kind] = {}
        for entry in self.entries:
            if names := [name for name in entry.tensors if select(name)]:
                with self._opened(entry, whole=False) as file:
                    for name in names:
                        part = file.get_slice(name)
                        found[name] = Kind(part.get_dtype(), tuple(part.get_shape()))
        return found

    @contextmanager
    def _opened(self, entry: BlockEntry, whole: bool = True) -> Iterator[Any]:
        path = self._file(entry, whole)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError, *_OF_TORCH) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                str(file_in(self.path, entry.file)), reason[:_LONGEST_REASON], "tensors that torch can hold"
            ) from error

    def _file(self, entry: BlockEntry, whole: bool) -> Path:
        if self._fetched is not None:
            return self._fetched.fetch(entry) if whole else self._fetched.outline(entry)
        if entry.file in self._unverified:
            try:
                verify_files(Path(self.path), [entry])
            except DamagedError as error:
                raise error.refused(OLDER) from error
            self._unverified.discard(entry.file)
        return Path(self.path) / entry.file

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


class NewestGood(NamedTuple):
    """What `CheckpointStore.newest_good` found.

    Attributes
    ----------
    manifest
        Of the newest checkpoint that is as it was written, or None.
    damaged
        What is wrong with each newer one, by its step, the newest first.
    """

    manifest: Manifest | None
    damaged: dict[int, DamagedError]


def way_back(older: Manifest | None) -> str:
    """Say how to go on from an older checkpoint, if there is a good one."""
    if older is None:
        return ""
    option = f"lowdimfa train --resume-step {older.step}"
    return f"The older checkpoint of step {older.step} is good; '{option}' goes on from it."


def export_state(
    manifest: Manifest, average: bool = False, select: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """Return the state dict of the plain model, as if it had never been cut into blocks, but for what is no tensor.

    With ``average``, trained weights are their moving average, as precise as it is kept; an `InputError` if the
    checkpoint has none. With ``select``, it is of the names that are selected.
    """
    exported = _exported(manifest, average)
    names = {name: kept for name, kept in exported.items() if select is None or select(name)}
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
    if output.is_dir() or not output.name:
        raise InputError("--output", f"the folder {str(output)!r}", "the path of a file")
    try:
        names = _exported(manifest, average)
        found = manifest.kinds({*names.values(), *(f"{MODEL_PREFIX}{name}" for name in names)}.__contains__)
        # An average has the type of its weight here: it is kept in a wider one where that is narrow.
        kinds = {name: found.get(f"{MODEL_PREFIX}{name}", found[kept]) for name, kept in names.items()}

        def read(name: str) -> Tensor:
            return manifest.tensors(names[name].__eq__)[names[name]].to(TYPES[kinds[name].dtype][0])

        with Folder(output.parent).writing(output.name) as file:
            write_tensors(file, kinds, read)
    except (OSError, SafetensorError) as error:
        raise InputError(str(output), f"a path that can't be written ({error})", "a writable file") from error


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
