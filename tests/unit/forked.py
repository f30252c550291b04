"""Run a part of a test in a fork: a process of its own, without the seconds that imports take."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn


class Ended(NamedTuple):
    """How a fork ended: with an exit code, negative for a signal, and what it wrote."""

    code: int
    stdout: str
    stderr: str


def forked(action: Callable[[], object], folder: Path, stdout: Path | None = None) -> Ended:
    """Do something in a fork.

    Parameters
    ----------
    action
        What to do.
    folder
        For what it writes.
    stdout
        Where its standard output goes, if not into the folder.
    """
    paths = [stdout or folder / "forked-stdout.txt", folder / "forked-stderr.txt"]
    child = os.fork()
    if child == 0:
        _do(action, paths)
    _, status = os.waitpid(child, 0)
    written = ["" if path == stdout else path.read_text() for path in paths]
    return Ended(os.waitstatus_to_exitcode(status), *written)


def _do(action: Callable[[], object], paths: list[Path]) -> NoReturn:
    code = 1
    try:
        for descriptor, path in enumerate(paths, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        # pytest has put others in their place.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        try:
            action()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # no room, where that is what is tried
                stream.flush()
        os._exit(code)
