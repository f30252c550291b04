"""What a process of a run prints, kept where the run is."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO

from lowdimfa.errors import ResourceError


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
        raise ResourceError(
            f"{path} can't be written ({error.strerror}); run.storage must be a folder that all nodes share",
            setting="run.storage",
        ) from error
    with contextlib.suppress(ValueError):  # it has been closed
        sys.stdout.flush()
    with contextlib.suppress(ValueError):
        sys.stderr.flush()
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.close(descriptor)
    sys.stdout, sys.stderr = _by_line(1), _by_line(2)


def _by_line(descriptor: int) -> TextIO:
    """Return a stream that writes every line at once, and that no careless user code can close for good."""
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
