"""An address in an object store, by way of `fsspec`."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from lowdimfa.errors import InputError

KEY = "run.storage"
PATIENCE = 60.0
"""Seconds for which a store is asked again where no specification says otherwise: the default liveness."""

_BY_OBSTORE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"})
_registered: set[str] = set()
_CHUNK = 8 << 20  # bytes
_PART, _PARTS = 10 << 20, 9_000
"""Bytes of a part of an upload by obstore, and how many a file may have: stores take 10,000."""
_LONGEST_REASON = 300


class ObjectsError(OSError):
    """An object store can't be reached, or refuses."""


class Objects:
    """An address in an object store, or in whatever else `fsspec` knows.

    Parameters
    ----------
    address
        Such as ``s3://bucket/prefix/run``.
    patience
        Seconds for which a request that fails is made again, by the store's client.
    """

    shared = True

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self.address = address.rstrip("/")
        self._fs = _file_system(self.address, patience)
        self._root = self._fs._strip_protocol(self.address)
        self._by_obstore = self.address.partition("://")[0] in _BY_OBSTORE

    def place(self, name: str = "") -> str:
        """Return an address."""
        return f"{self.address}/{name}" if name else self.address

    def tree(self, under: str) -> dict[str, dict[str, int]]:
        """Return the folders in a folder, and in each the sizes of its files."""
        found: dict[str, dict[str, int]] = {}
        for name, size in self.files(under).items():
            folder, slash, file = name.removeprefix(f"{under}/").partition("/")
            if slash:
                found.setdefault(folder, {})[file] = size
        return found

    def files(self, under: str = "") -> dict[str, int]:
        """Return the names of all files below a folder, and their sizes."""
        start = f"{self._root}/"
        try:
            with self._told(under):
                found = self._fs.find(f"{start}{under}".rstrip("/"), detail=True, on_error="raise")
        except FileNotFoundError:
            return {}
        inside = {
            path.removeprefix(start): int(entry["size"])
            for path, entry in found.items()
            if path.startswith(start)
        }
        folders = {str(folder) for name in inside for folder in PurePosixPath(name).parents}
        # Some tools make an object of no bytes for a folder, which is listed by the folder's name.
        return {name: size for name, size in inside.items() if size or name not in folders}

    def read(self, name: str, size: int | None = None, start: int = 0) -> bytes:
        """Return what a file holds, or that many of its bytes."""
        part = {} if size is None else {"start": start, "end": start + size}
        with self._told(name):
            return bytes(self._fs.cat_file(self._path(name), **part))

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to this machine."""
        with self._told(name):
            source = self._fs.open(self._path(name), "rb")
        try:
            with closing(source), path.open("wb") as file:
                for chunk in iter(partial(self._read_on, name, source), b""):
                    file.write(chunk)
        except OSError as error:
            if error.filename is not None:
                raise
            # Of this machine, and not of the store.
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _read_on(self, name: str, source: Any) -> bytes:
        with self._told(name):
            return bytes(source.read(_CHUNK))

    @contextmanager
    def writing(self, name: str, size: int = 0) -> Iterator[BinaryIO]:
        """Upload a file, in parts if it is large; ``size`` is about that of the whole, where it is known."""
        large = self._by_obstore and size > _PARTS * _PART
        with self._told(name):
            file = self._fs.open(self._path(name), "wb", **({"buffer_size": size // _PARTS} if large else {}))
        try:
            yield cast(BinaryIO, _Chunked(file, lambda: self._told(name)))
        except BaseException:
            with suppress(AttributeError):  # closing would complete it; a file in memory needs no closing
                file.closed = True
            raise
        with self._told(name):
            file.close()

    def delete(self, name: str) -> None:
        """Delete a file."""
        with self._told(name):
            self._fs.rm_file(self._path(name))

    def discard(self, folder: str, first: str) -> None:
        """Delete all files below a folder, one of them before all others."""
        names = sorted(self.files(folder), key=lambda name: name != f"{folder}/{first}")
        for name in names:
            self.delete(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Make whatever a client raises an `ObjectsError` with few words; a file that isn't there stays that."""
        try:
            yield
        except ObjectsError:
            raise
        except BaseException as error:  # each client has errors of its own, and those in Rust may panic
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = _reason(error)
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(errno.ENOENT, "no such object", str(self.place(name))) from None
            raise ObjectsError(errno.EREMOTEIO, reason, str(self.place(name))) from None


class _Chunked:
    """Writes to a client's file in pieces that it need not copy at once."""

    def __init__(self, file: Any, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._file, self._told = file, told

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        with self._told():
            for start in range(0, len(view), _CHUNK):
                self._file.write(bytes(view[start : start + _CHUNK]))
        return len(view)


def _file_system(address: str, patience: float) -> Any:
    import fsspec  # late: most runs are kept in a folder

    scheme, options = address.partition("://")[0], dict[str, Any]()
    if scheme in _BY_OBSTORE:
        try:
            from obstore.fsspec import register
        except ImportError as error:
            raise InputError(
                KEY,
                f"an address of {scheme}:// without the package obstore ({error})",
                "that it is installed, on every node",
                "Install it with: pip install 'lowdimfa[s3]'",
            ) from error
        if scheme not in _registered:
            register(scheme)
            _registered.add(scheme)
        seconds = timedelta(seconds=patience)
        options = {
            "retry_config": {"max_retries": 1_000_000, "retry_timeout": seconds},  # time alone is the bound
            # Plain HTTP is for who writes it into the endpoint's address.
            "client_options": {"timeout": seconds, "connect_timeout": seconds / 3, "allow_http": True},
        }
    try:
        return fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        raise InputError(
            KEY, f"{address!r} ({error})", "a folder, or an address of s3, gs or abfs"
        ) from error


def _reason(error: BaseException) -> str:
    """Return what a client says, without what only its authors understand."""
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    if code := re.search(r"<Code>(\w+)</Code>", str(error)):
        first = f"{code[1]}: {first.split('<?xml')[0].rstrip(': ')}"
    return first[:_LONGEST_REASON]
