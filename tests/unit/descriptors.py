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
    left = {one for one in _open() - before if not _of_a_network(one[1])}
    assert not left, left


def _of_a_network(name: str) -> bool:
    """Whether it is a socket, but none of this machine alone: what is looked at here opens no other."""
    number = name.removeprefix("socket:[").removesuffix("]")
    local = {line.split()[6] for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]}
    return name.startswith("socket:") and number not in local


def _open() -> set[tuple[str, str]]:
    """Return the open descriptors: their numbers, and what is behind each."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the folder's own descriptor is
            found.add((entry.name, str(entry.readlink())))
    return {(number, name) for number, name in found if name.startswith(KINDS)}
