"""Where a run is kept: a folder, or an address in an object store.

Both keep files under names. A file is there whole or not at all, and for good once `writing` has ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lowdimfa.errors import InputError
from lowdimfa.paths import expand, fill_in
from lowdimfa.services.run.objects import KEY, PATIENCE, Objects
from lowdimfa.services.spec.addresses import is_address, require_plain

_FILE = "file://"

Place = str | Path
"""Of a run: the path of a folder, or an address."""


class Folder:
    """A folder of this machine, or one that its nodes share.

    Parameters
    ----------
    root
        Its path.
    """

    shared = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str = "") -> Path:
        """Return a path."""
        return self.root / name

    def tree(self, under: str) -> dict[str, dict[str, int]]:
        """Return the folders in a folder, and in each the sizes of its files."""
        with suppress(FileNotFoundError):
            folders = [path for path in (self.root / under).iterdir() if path.is_dir()]
            return {
                path.name: {file.name: file.lstat().st_size for file in path.iterdir()} for path in folders
            }
        return {}

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        return (self.root / name).read_bytes()

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Write a file beside its place, wait until it is on the disk, and rename it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.partial")
        try:
            with scratch.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        _sync(path.parent.parent)

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.root / name).unlink()

    def discard(self, folder: str, first: str) -> None:
        """Delete a folder with its files; the first is gone for good before any other is touched."""
        path = self.root / folder
        if (path / first).exists():
            (path / first).unlink()
            _sync(path)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def storage_of(place: Place, patience: float = PATIENCE) -> Folder | Objects:
    """Return the storage at a place.

    Raises
    ------
    InputError
        No installed package knows addresses of this kind.
    """
    return Objects(str(place), patience) if is_address(place) else Folder(Path(place))


def located(text: Place, key: str = KEY) -> str:
    """Return a place as every process of a run can have it: an address, or an absolute path.

    Parameters
    ----------
    text
        As it was written, with variables of the environment, or as ``file://`` and an absolute path.
    key
        For messages.

    Raises
    ------
    InputError
        It has credentials in it, names a variable that is not set, or is no path.
    """
    require_plain(str(text), key)
    try:
        if is_address(text):
            return fill_in(str(text)).rstrip("/")
        written = str(text)
        if written.startswith(_FILE):
            written = written.removeprefix(_FILE)
            if not written.startswith("/"):
                raise ValueError("file:// takes an absolute path: file:///…")
        return str(expand(written).resolve())
    except ValueError as error:
        raise InputError(key, f"{str(text)!r} ({error})", "the path of a folder, or an address") from error


def _sync(path: Path) -> None:
    """Wait until a directory's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
