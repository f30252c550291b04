"""The service's own folder: what is in it is for the service's user alone, whatever the umask says."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from lowdimfa.errors import InputError

FOLDER_MODE, FILE_MODE = 0o700, 0o600

ROOT = 0
"""What belongs to root is as safe as one's own; folders that are mounted often do."""

_log = logging.getLogger(__name__)


def own_folder(path: Path, option: str) -> Path:
    """Return a folder that nobody else may enter, made where there is none, by its real path.

    Parameters
    ----------
    path
        The folder, or a link to it.
    option
        Whose value it is, for messages.

    Raises
    ------
    InputError
        The folder, or the link to it, belongs to somebody else; or it can't be made.
    """
    expected = "a folder of this user's own"
    try:
        _require_own(
            path.lstat(), f"{option} {path}", expected
        )  # a link of somebody else's leads where they like
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{option} {path}", f"no folder ({error.strerror})", expected) from error
    real = path.resolve()
    where = f"{option} {real}"
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        real.mkdir(mode=FOLDER_MODE, exist_ok=True)
        status = real.stat()
    except OSError as error:
        raise InputError(where, f"no place to write ({error.strerror})", "a writable folder") from error
    _require_own(status, where, expected)
    _close(real, status, FOLDER_MODE)
    return real


def own_file(path: Path) -> Path:
    """Return a file that nobody else may read, made empty where there is none.

    Raises
    ------
    InputError
        It belongs to somebody else, or is a link.
    OSError
        It can't be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
    except OSError:
        if path.is_symlink():
            raise InputError(str(path), "a link", "a file") from None
        raise
    try:
        status = os.fstat(descriptor)
        _require_own(status, str(path), "a file of this user's own")
        _close(path, status, FILE_MODE)
    finally:
        os.close(descriptor)
    return path


def _require_own(status: os.stat_result, where: str, expected: str) -> None:
    """Refuse what belongs to somebody else."""
    if status.st_uid not in (os.geteuid(), ROOT):
        hint = "Run the service as that user, or choose another place."
        raise InputError(where, f"one of user {status.st_uid}", expected, hint)


def _close(path: Path, status: os.stat_result, mode: int) -> None:
    """Take the rights of all other users away."""
    if not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return
    try:
        path.chmod(mode)
    except OSError as error:
        _log.warning(
            "other users may have access to %s: its rights can't be changed (%s)", path, error.strerror
        )
