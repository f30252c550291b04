"""What a test left open: something else in the process may close, but nothing may stay, meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def none_left_open() -> Iterator[None]:
    """Fail if a descriptor is open at the end that was not open at the begin."""
    before = _open()
    yield
    assert not _open() - before


def _open() -> set[tuple[str, Path]]:
    """Return the open descriptors: their numbers, and what is behind each."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the folder's own descriptor is
            found.add((entry.name, entry.readlink()))
    return found
