"""Where a run is kept: a folder, or an address in an object store.

Both keep files under names. A file is there whole or not at all, and for good once `writing` has ended.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from lowdimfa.errors import InputError
from lowdimfa.paths import expand, fill_in
from lowdimfa.services.run.objects import KEY, PATIENCE, Objects
from lowdimfa.services.spec.addresses import is_address, require_plain

_FILE = "file://"
_ONE_SLASH = re.compile(r"(s3a?|gc?s|abfss?|az|adl|memory|file):/(?!/)")

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
        return {path.name: _sizes(path) for path in _entries(self.root / under) if path.is_dir()}

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        return (self.root / name).read_bytes()

    @contextmanager
    def writing(self, name: str, size: int = 0) -> Iterator[BinaryIO]:
        """Write a file beside its place, wait until it is on the disk, and rename it; its size doesn't matter here."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(
            f".{path.name}.{secrets.token_hex(4)}.partial"
        )  # a lost writer may still be at it
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
        for folder in dict.fromkeys((path.parent, path.parent.parent, self.root)):
            # What lies around the root is others', and may not be opened to be read.
            with suppress(PermissionError) if folder == self.root.parent else nullcontext():
                _sync(folder)

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.root / name).unlink(missing_ok=True)  # one who writes it and is given up may remove it

    def discard(self, folder: str, first: str) -> None:
        """Delete a folder with its files; the first is gone for good before any other is touched."""
        path = self.root / folder
        if path.is_symlink():  # somebody keeps it elsewhere: what is there is theirs
            path.unlink()
            return
        if (path / first).exists():
            (path / first).unlink()
            _sync(path)
        _remove(path)


def storage_of(place: Place, patience: float = PATIENCE) -> Folder | Objects:
    """Return the storage at a place.

    Raises
    ------
    InputError
        No installed package knows addresses of this kind.
    """
    return Objects(str(place), patience) if is_address(place) else Folder(Path(place))


def below(place: Place, name: str) -> str:
    """Return the place of a name in a folder, or below an address."""
    return f"{place}/{name}" if is_address(place) else str(Path(place) / name)


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
        written = fill_in(str(text))
        require_plain(written, key)  # a variable may hold all of it
        if is_address(written):
            return _address(written)
        if written.startswith(_FILE):
            path = unquote(written.removeprefix(_FILE))
            if not path.startswith("/") or "\0" in path:
                raise ValueError("file:// takes an absolute path: file:///…")
            return str(Path(path).resolve())
        if found := _ONE_SLASH.match(written):
            raise ValueError(f"an address begins with {found[1]}://")
        return str(expand(text).resolve())
    except ValueError as error:
        raise InputError(key, f"{str(text)!r} ({error})", "the path of a folder, or an address") from error


def _address(written: str) -> str:
    """Return an address without the slash at its end.

    Raises
    ------
    ValueError
        Its parts can't be those of one place: ``..`` is a name like others in a store, and leads elsewhere in a folder.
    """
    scheme, _, path = written.partition("://")
    parts = path.rstrip("/").split("/")
    if not all(parts):
        raise ValueError("its bucket, or a folder in it, has no name")
    if {".", ".."} & {*parts} or not path.isprintable():
        raise ValueError("'.', '..' and control characters can't be in an address")
    return f"{scheme}://{'/'.join(parts)}"


def _entries(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of a folder's files; one that goes while we look, as a trainer's do, is not there."""
    found: dict[str, int] = {}
    for file in _entries(folder):
        with suppress(FileNotFoundError):
            found[file.name] = file.lstat().st_size
    return found


def _remove(folder: Path, times: int = 3) -> None:
    """Remove a folder, in which somebody who is given up may still write."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if times == 1 or error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
        if folder.exists():
            _remove(folder, times - 1)


def _sync(path: Path) -> None:
    """Wait until a directory's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
