"""The blocks' files of a checkpoint: written, what a manifest says of them, and whether they are so.

Of a checkpoint in an object store, a file is fetched when something in it is wanted, and checked then.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.objects import Objects
from lowdimfa.services.run.storage import Place, storage_of
from lowdimfa.services.run.tensor_file import TYPES, Kind, write_tensors

OLDER = "'lowdimfa train --resume-step' goes on from an older checkpoint."
"""The way out where a file turns out to be damaged that was not verified before."""

_LENGTH_BYTES = 8  # with which a safetensors file begins: those of the header
_MOST_HEADER = 100 << 20  # bytes; the library takes no larger one


class Record(BaseModel):
    """Plain data that must be as it is described."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BlockEntry(Record):
    """What the manifest says of one block's file: its name, digest and size, and what lies in it."""

    block: int = Field(ge=0)
    file: str = Field(pattern=r"^block-[0-9]+-[0-9a-f]{8}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    layers: list[str]
    tensors: list[str]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class BlockState:
    """Everything one block needs to go on, under names that don't depend on where the model was cut.

    Attributes
    ----------
    block, layers
        The block's position and the names of its layers, for people.
    tensors
        ``model/<parameter or buffer>``, ``optimizer/<parameter>/<key>``, ``feedback/<boundary layer>/Q``,
        ``head/P`` and the like.
    scalars
        What JSON can hold: parameter groups, scheduler state. Tuples come back as lists.
    """

    block: int
    layers: list[str]
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


class Attempt(NamedTuple):
    """A checkpoint that is being written, as the blocks are told of it.

    Attributes
    ----------
    place
        Of the run.
    folder
        Of the checkpoint, below that.
    mark
        What the names of its files have that those of other attempts lack.
    patience
        See `storage_of`.
    """

    place: str
    folder: str
    mark: str
    patience: float


def write_block(
    attempt: Attempt, state: BlockState, unwanted: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Write one block's file, in the block's own process, and return its entry for the manifest.

    Parameters
    ----------
    attempt, state
        Where and what.
    unwanted
        Is asked now and then whether nobody wants the file any more.

    Raises
    ------
    ResourceError
        The file can't be written; a `DiskFullError` where that is for lack of room, a `StorageError` where an object
        store is at fault.
    """
    storage = storage_of(attempt.place, attempt.patience)
    file = f"block-{state.block}-{attempt.mark}.safetensors"
    name = f"{attempt.folder}/{file}"
    try:
        kinds = {name: Kind.of(tensor) for name, tensor in state.tensors.items()}
        with storage.writing(name, sum(kind.nbytes for kind in kinds.values())) as target:
            counted = _Counted(target, unwanted)
            write_tensors(cast(BinaryIO, counted), kinds, state.tensors.__getitem__)
    except (OSError, SafetensorError) as error:
        what = f"block {state.block} can't write its checkpoint"
        raise refusal(what, storage.place(name), error, block=state.block) from error
    entry = BlockEntry(
        block=state.block,
        file=file,
        sha256=counted.digest.hexdigest(),
        bytes=counted.size,
        layers=state.layers,
        tensors=sorted(state.tensors),
        scalars=state.scalars,
    )
    return entry.model_dump()


class _Counted:
    """Takes size and digest of what passes into a file, as long as somebody wants it."""

    def __init__(self, file: BinaryIO, unwanted: Callable[[], bool]) -> None:
        self._file, self._unwanted = file, unwanted
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        if self._unwanted():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        self._file.write(data)


@dataclass
class DamagedError(Exception):
    """A file of a checkpoint is not what it should be; the store makes it an `InputError` with a way out."""

    file: Place
    found: str
    expected: str

    def refused(self, hint: str = "") -> InputError:
        """Return the error for people."""
        return InputError(str(self.file), self.found, self.expected, hint)


class Fetched:
    """A checkpoint in an object store, with copies of those of its files that were wanted, until nobody has this.

    Parameters
    ----------
    objects, folder
        Where it is.
    """

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self._copies = tempfile.TemporaryDirectory(prefix="lowdimfa-checkpoint-")

    @property
    def place(self) -> str:
        """Its address."""
        return self._objects.place(self._folder)

    def path(self, file: str) -> Path:
        """Return where the copy of a file is, or would be."""
        return Path(self._copies.name) / file

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each of its files."""
        return {Path(name).name: size for name, size in self._objects.files(self._folder).items()}

    def read(self, file: str) -> bytes:
        """Return what a file holds."""
        return self._objects.read(f"{self._folder}/{file}")

    def outline(self, entry: BlockEntry) -> Path:
        """Return a file that says what lies in a block's file, and has nothing of it: its digest can't be checked.

        Raises
        ------
        ResourceError
            It can't be had.
        """
        path = self.path(f"{entry.file}.outline")
        name = f"{self._folder}/{entry.file}"
        if self.path(entry.file).exists():
            return self.path(entry.file)
        if not path.exists():
            try:
                length = self._objects.read(name, _LENGTH_BYTES)
                header = min(_LENGTH_BYTES + int.from_bytes(length, "little"), entry.bytes, _MOST_HEADER)
                path.write_bytes(self._objects.read(name, header))
                os.truncate(path, entry.bytes)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise refusal("a checkpoint can't be read", self._objects.place(name), error) from error
        return path

    def fetch(self, entry: BlockEntry) -> Path:
        """Return a copy of a block's file that is as the manifest says.

        Raises
        ------
        InputError
            It isn't.
        ResourceError
            It can't be had.
        """
        path, place = self.path(entry.file), f"{self.place}/{entry.file}"
        if not path.exists():
            try:
                self._objects.fetch(f"{self._folder}/{entry.file}", path)
                _verify(path, entry)
            except DamagedError as error:
                path.unlink()
                raise DamagedError(place, error.found, error.expected).refused(OLDER) from error
            except OSError as error:
                path.unlink(missing_ok=True)
                raise refusal("a checkpoint can't be read", place, error) from error
        return path


def verify_files(source: Path | Fetched, entries: Sequence[BlockEntry]) -> None:
    """Verify all files as far as they are at hand: of those in an object store, that they are there in their sizes."""
    if isinstance(source, Fetched):
        sizes = source.sizes()
        for entry in entries:
            if sizes.get(entry.file) != entry.bytes:
                found = f"{sizes[entry.file]} bytes" if entry.file in sizes else "no such object"
                raise DamagedError(file_in(source.place, entry.file), found, f"{entry.bytes} bytes")
        return
    for entry in entries:
        try:
            _verify(source / entry.file, entry)
        except OSError as error:  # a bad sector, for example
            found = error.strerror or str(error)
            raise DamagedError(source / entry.file, found, "a readable file") from error


def file_in(place: Place, name: str) -> Place:
    """Return where a file of a checkpoint is, for people."""
    return place / name if isinstance(place, Path) else f"{place}/{name}"


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
