"""Paths as people write them, and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})", re.ASCII)


def expand(text: str | os.PathLike[str]) -> Path:
    """Return a path with a leading ``~`` and the variables of the environment that it names filled in, as a shell does.

    Raises
    ------
    ValueError
        A variable or a user is not known, or no file can be called so; with the reason, as ``$SCRATCH is not set``.
    """
    written = os.fspath(text)
    if "\0" in written:
        raise ValueError("a null character is in it")
    try:
        home = str(Path(written).expanduser())
    except RuntimeError:
        raise ValueError(f"the home folder of {written.split('/')[0]} is not known") from None
    return Path(fill_in(home))


def fill_in(text: str) -> str:
    """Return a text with the variables of the environment that it names filled in.

    Raises
    ------
    ValueError
        One is not set, or empty.
    """
    return _VARIABLE.sub(_value, text)


def _value(found: re.Match[str]) -> str:
    value = os.environ.get(found[1].strip("{}"))
    if not value:
        raise ValueError(f"{found[0]} is {'not set' if value is None else 'empty'}")
    return value


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Give a folder that becomes ``out`` when the body has ended, and goes away when it fails."""
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        for path in folder.rglob("*"):  # a name in place means that its contents are on the disk
            if path.is_file():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
