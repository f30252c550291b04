"""Standard output and error, so that nothing is lost for what could not be shown.

Characters that a stream's encoding does not have are replaced. Where standard output can't be written, since nobody reads
it any more or its disk is full, a command that is there to show something ends. One that is there for something else goes
on (`outlive`), whoever in this process prints: also a user's own model. Standard error never ends anything.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET})
"""What a pipe without a reader and a terminal that was closed answer."""

UNREAD = 141
"""Exit code of a command that ended because nobody reads its output, as shells have it for SIGPIPE."""


class OutputLostError(BaseException):
    """Standard output can't be written, and the command is there for nothing else.

    As Ctrl-C, it is no error of the user's code that happens to print.

    Attributes
    ----------
    unread
        Whether nobody reads it any more; else there is a trouble worth telling, such as a full disk.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output can't be written: {error.strerror or error}")
        self.unread = error.errno in _GONE


class _Lost:
    """What becomes of a command whose output is lost."""

    outlived = ""
    told = False

    def __call__(self, error: OSError) -> None:
        if self.told:
            return
        self.told = True  # also while it ends: what is still in a buffer is written once more
        if not self.outlived:
            raise OutputLostError(error)
        reason = "nobody reads it any more" if error.errno in _GONE else "there is no room for it"
        note = f"lowdimfa: part of the output is lost, since {reason}; {self.outlived}\n"
        with suppress(OSError):  # past `sys.stderr`, which a progress bar leads back to standard output
            os.write(2, note.encode())


_lost = _Lost()


def outlive(elsewhere: str) -> None:
    """Let this command go on where its output can't be written.

    Parameters
    ----------
    elsewhere
        Ends the one sentence about it on standard error: where the same can be found.
    """
    _lost.outlived = elsewhere


class _Descriptor(io.FileIO):
    """Writes to a descriptor, or tells that this isn't possible and drops the data."""

    def __init__(self, descriptor: int, lost: Callable[[OSError], None], *, closefd: bool = False) -> None:
        super().__init__(descriptor, "w", closefd=closefd)
        self._lost = lost

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what is taken, or nothing; what is dropped counts as written."""
        try:
            while (written := super().write(data)) is None:  # another process made the pipe non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self._lost(error)
            return memoryview(data).nbytes


def use_streams() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` such streams."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by who started this process: the next file would get its number
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.flush()
    sys.stdout = _stream(_Descriptor(1, _lost), sys.stdout, "replace")
    sys.stderr = _stream(_Descriptor(2, lambda error: None), sys.stderr, "backslashreplace")


def claim_stdout() -> TextIO:
    """Return standard output for events alone; what anything else in this process writes goes to standard error."""
    sys.stdout.flush()
    claimed = _Descriptor(os.dup(sys.stdout.fileno()), _lost, closefd=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return _stream(claimed, None, "strict")


def _stream(raw: _Descriptor, like: TextIO | None, errors: str) -> TextIO:
    """Return a stream of whole lines with the encoding of another, or UTF-8."""
    encoding = like.encoding if like is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
