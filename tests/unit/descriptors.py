"""What a test left open of pipes, events, sockets and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KINDS = ("pipe:", "anon_inode:", "/memfd:", "socket:")
"""How the names of what is looked at begin. Other threads of the process may open and close files meanwhile."""


@contextmanager
def none_left_open() -> Iterator[None]:
    """Fail if such a descriptor is open at the end that was not open at the begin; some may have been closed."""
    before = _open()
    yield
    left = _open() - before
    assert not left, left


def _open() -> set[tuple[str, str]]:
    """Return the open descriptors: their numbers, and what is behind each."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the folder's own descriptor is
            found.add((entry.name, str(entry.readlink())))
    return {(number, name) for number, name in found if name.startswith(KINDS)}
