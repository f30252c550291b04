"""What a process of a run prints, kept where the run is."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lowdimfa.services.run.disk import refusal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def log_file(run_dir: Path, process: str) -> Path:
    """Return where a process's output is kept; ``process`` is ``trainer`` or ``block-<i>``."""
    return run_dir / "logs" / f"{process}.log"


def keep_output(path: Path) -> None:
    """Send this process's standard output and error to a file from now on, at its end.

    The descriptors themselves are redirected, so that what native code, `logging` and child processes write gets there
    too. Only for a process that exists for one run: a terminal would fall silent.

    Raises
    ------
    ResourceError
        The file can't be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        what = "the log can't be written; run.storage must be a folder that all nodes share and have room in"
        raise refusal(what, path, error) from error
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # it has been closed, or its disk is full
            stream.flush()
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.close(descriptor)
    sys.stdout, sys.stderr = _by_line(1), _by_line(2)


def _by_line(descriptor: int) -> TextIO:
    """Return a stream that writes every line at once, and that no careless user code can close for good."""
    raw = _Forgiving(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class _Forgiving(io.FileIO):
    """Drops what finds no room on the disk: no `print` and no traceback may end a run.

    Once there is room again it says how much is missing.
    """

    _lost = 0

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what there is room for, and count the rest as written."""
        size = memoryview(data).nbytes
        try:
            if self._lost:
                super().write(f"\n[{self._lost} bytes are missing here: the disk was full]\n".encode())
                self._lost = 0
            return super().write(data) or 0
        except OSError:
            self._lost += size
            return size
