"""A file of lines that a full disk neither tears nor loses, and what its lines hold."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

WAITING_BYTES = 16 << 20
"""Most that waits in memory for room on the disk."""

QUIET_SECONDS = 60.0
"""Trouble that comes back sooner than this is the same, and is counted: a disk that is nearly full takes some lines."""

_AT_ONCE = 1 << 20  # bytes: while the disk is full, each new line is another attempt, which must stay cheap


class LineFile:
    """Appends whole lines to a file; no fault of the disk is an error here.

    What can't be written waits in memory and goes first as soon as the disk takes it, each line once. A line of which
    only a part found room is taken back, and one that a killed process left without its end is ended, so that it
    spoils no other. For one thread, and one writer of the file at a time.

    Parameters
    ----------
    path
        The file; it and its folder are made when there is something to write.
    limit
        Bytes that may wait. Beyond that the oldest lines are given up.
    on_trouble
        Called with the reason when lines begin to wait, once for trouble that comes and goes. The line that it returns,
        or "", goes before them.
    gap
        Called with the number of lines given up; what it returns, a line or "", stands in their place.
    follow
        Whether the file may be a link.

    Attributes
    ----------
    trouble
        Why lines are waiting, or None.
    missing
        Lines given up so far.
    """

    def __init__(
        self,
        path: Path,
        limit: int = WAITING_BYTES,
        *,
        on_trouble: Callable[[str], str] = lambda reason: "",
        gap: Callable[[int], str] = lambda lines: "",
        follow: bool = True,
    ) -> None:
        self.path, self._follow = path, follow
        self.trouble: str | None = None
        self.missing = 0
        self._limit = limit
        self._on_trouble = on_trouble
        self._gap = gap
        self._outages = 0  # that were not told
        self._troubled_at = -QUIET_SECONDS
        self._untold = 0  # lines given up for which nothing stands in the file yet
        self._waiting = bytearray()
        self._descriptor: int | None = None
        self._half_line = False

    def open(self) -> int:
        """Open the file before there is something to write, and return its descriptor.

        Raises
        ------
        OSError
            That isn't possible.
        """
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            descriptor = open_regular(self.path, flags, follow=self._follow)
            try:
                self._half_line = _ends_in_half_line(descriptor)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor

    def write(self, text: str) -> None:
        """Append whole lines, at once or as soon as there is room."""
        self._waiting += text.encode()
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._waiting:
                self._write_out()
        except OSError as error:
            self._release()  # and begin anew with the next line: the file system may have been mounted again
            reason = f"{self.path} can't be written ({error.strerror})"
            if self.trouble is None:
                self._tell(reason)
            self.trouble, self._troubled_at = reason, time.monotonic()
            self._keep_limit()
        else:
            self.trouble = None

    def _tell(self, reason: str) -> None:
        """Say that lines begin to wait, unless that was said for trouble that has hardly passed."""
        if time.monotonic() - self._troubled_at < QUIET_SECONDS:
            self._outages += 1
            return
        again = f", as {self._outages:,} times before" if self._outages else ""
        self._waiting[:0] = self._on_trouble(reason + again).encode()
        self._outages = 0

    def waiting(self) -> bytes:
        """Return what the next write will add to the file, as soon as there is room."""
        return self._head() + bytes(self._waiting) if self._waiting else b""

    def close(self) -> bytes:
        """Write what waits, or give it up if there is no room, and close the file; return what was given up."""
        self.flush()
        given_up = self.waiting()
        self.missing += self._waiting.count(b"\n")
        self._waiting.clear()
        self._release()
        return given_up

    def _ending(self) -> bytes:
        return b"\n" if self._half_line else b""

    def _head(self) -> bytes:
        """Return what stands before the lines that wait: the end of half a line, the note on those given up."""
        return self._ending() + (self._gap(self._untold).encode() if self._untold else b"")

    def _write_out(self) -> None:
        descriptor = self.open()
        ending, head = self._ending(), self._head()
        data = head + self._waiting[: self._waiting.find(b"\n", _AT_ONCE) + 1 or None]
        start = os.lseek(descriptor, 0, os.SEEK_END)
        written = 0
        try:
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
        finally:
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            # A Ctrl-C may have come before the last count was kept; but another process may also have appended.
            if (
                written < end - start <= len(data)
                and os.pread(descriptor, end - start, start) == data[: end - start]
            ):
                written = end - start
            whole = data.rfind(b"\n", 0, written) + 1
            if whole >= len(ending):
                self._half_line = False
            if whole >= len(head):
                self._untold = 0
                del self._waiting[: whole - len(head)]
            if whole < written:
                # Should this fail as well, the half line is ended when the file is opened again.
                with contextlib.suppress(OSError):
                    if os.fstat(descriptor).st_size == end:  # what another one has appended since stays
                        os.ftruncate(descriptor, end - (written - whole))

    def _keep_limit(self) -> None:
        excess = len(self._waiting) - self._limit
        if excess > 0:
            end = self._waiting.find(b"\n", excess - 1) + 1
            lost = self._waiting.count(b"\n", 0, end)
            self.missing += lost
            self._untold += lost
            del self._waiting[:end]

    def _release(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def open_regular(
    path: str | Path, flags: int = os.O_RDONLY, *, follow: bool = True, folder: int | None = None
) -> int:
    """Open a file and return its descriptor; who may write to its folder can't lead elsewhere, nor make this wait.

    Parameters
    ----------
    path
        The file; beneath ``folder``, a descriptor, if that is given.
    flags
        Of `os.open`.
    follow
        Whether it may be a link.

    Raises
    ------
    OSError
        There is none, it can't be opened, or it is a named pipe, a link that isn't followed, or no file at all.
    """
    # Without waiting for somebody at the other end, as a named pipe has it.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return descriptor


def _ends_in_half_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def objects_in(
    path: Path, marks: Collection[bytes] = (), *, follow: bool = True
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the byte of each line of a file and the JSON object in it, None if there is none; no file has no lines.

    Parameters
    ----------
    path
        The file.
    marks
        Only lines that have one of these in them; all if empty.
    follow
        Whether it may be a link.
    """
    try:
        descriptor = open_regular(path, follow=follow)
    except FileNotFoundError:
        return
    byte = 0
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            if not marks or any(mark in line for mark in marks):
                yield byte, object_in(line)
            byte += len(line)


def object_in(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line holds; None if it holds none."""
    try:
        found = json.loads(line.decode())
        if b"\\u" in line:  # half of a surrogate pair, which JSON can escape, can be stored and sent nowhere
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def to_json(found: dict[str, Any]) -> str:
    """Return an object as one line of JSON; numbers that aren't finite, which JSON doesn't have, become null."""
    try:
        return json.dumps(found, allow_nan=False, default=str)
    except ValueError:  # some aren't
        finite = json.loads(json.dumps(found, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False)
