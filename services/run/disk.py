"""What a disk refuses, as errors that a person can act on, and files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from safetensors import SafetensorError

from lowdimfa.errors import DiskFullError, ResourceError, StorageError
from lowdimfa.services.run.objects import ObjectsError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_AWAY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN})
"""What a folder on another machine says while that starts anew, or is out of reach."""
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # the number's only place in an error of safetensors


def no_room(error: BaseException) -> bool:
    """Return whether an error says that the disk, or the user's share of it, is full."""
    if isinstance(error, SafetensorError):
        found = _OS_ERROR.search(str(error))
        return found is not None and int(found[1]) in _FULL
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _FULL)


def refusal(
    what: str, path: str | Path, error: OSError | SafetensorError, *, block: int | None = None
) -> ResourceError:
    """Return the typed error for something that can't be written.

    Parameters
    ----------
    what
        Begins the message: ``the result can't be written``.
    path
        The file or directory, unless the error itself names one.
    error
        What the system said. Where it is about room, the error is a `DiskFullError`; about an object store, or a folder
        that is out of reach, a `StorageError`.
    block
        Whose file it is.
    """
    reason = str(error)
    if isinstance(error, OSError):
        path, reason = os.fsdecode(error.filename or path), error.strerror or reason
    kind = DiskFullError if no_room(error) else ResourceError
    if isinstance(error, ObjectsError) or (isinstance(error, OSError) and error.errno in _AWAY):
        kind = StorageError
    return kind(f"{what}: {path}: {reason}", block=block, setting="run.storage")


def replace_text(path: Path, text: str, what: str) -> None:
    """Write a text file in place of an old one, which stays as it is if that fails; one with this text needs no room.

    Parameters
    ----------
    path, text
        The file and its new contents.
    what
        Begins the message of the error.

    Raises
    ------
    ResourceError
        It can't be written, for example because the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.suppress(OSError):
        if path.read_bytes() == text.encode():
            return
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise refusal(what, path, error) from error


def written_at(file: Path) -> int | None:
    """Return when a file was written last, in nanoseconds, or None if it isn't there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
