"""Pipes without a name between processes of one host: one makes them, the other opens the descriptor below ``/proc``."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path

LONGEST = 1 << 20
"""Bytes of a pipe that the system lets anybody have."""

PipeEnd = tuple[int, int]
"""A descriptor that the other process is to open, and the inode that it will find there: descriptors' numbers return."""


def place_of(descriptor: int) -> PipeEnd:
    """Return what another process needs to open one of this process's descriptors."""
    return descriptor, os.fstat(descriptor).st_ino


def descriptor_path(process: int, descriptor: int) -> Path:
    """Return where another process's descriptor can be opened."""
    return Path(f"/proc/{process}/fd/{descriptor}")


def open_end(process: int, place: PipeEnd, access: int) -> int:
    """Open another process's end of a pipe, not blocking.

    Raises
    ------
    OSError
        It can't be opened, or is not that pipe, of this user.
    """
    number, inode = place
    path = descriptor_path(process, number)
    if not stat.S_ISFIFO(path.stat().st_mode):  # to open something else might do something
        raise OSError(f"{path} is no pipe")
    opened = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(opened)
    if (status.st_ino, status.st_uid) != (inode, os.geteuid()):
        os.close(opened)
        raise OSError(f"{path} is another pipe, or of another user")
    return opened


def make_pipe(needed: int) -> tuple[int, int]:
    """Return both ends of a pipe for so many bytes, neither blocking.

    Raises
    ------
    OSError
        The system has no pipe, or none that long.
    """
    ends = os.pipe()
    try:
        for end in ends:
            os.set_blocking(end, False)
        if sys.platform.startswith("linux") and fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) < needed:
            fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, min(needed, LONGEST))
            if fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) < needed:
                raise OSError(f"a pipe can't hold {needed} bytes")
    except BaseException:
        for end in ends:
            os.close(end)
        raise
    return ends
