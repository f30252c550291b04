"""What the tests of the gRPC parts share."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LIVENESS = 20.0

HANGS = 60.0
"""Seconds that nothing takes, not even on a machine with much other work, unless it hangs."""

RAY_HANGS = 180.0
"""The same where a Ray that has begun to start is broken off: it may first sit out deadlines of its own, of 30 s each."""


class Inbox:
    """Stands in for a block's inbox: a queue whose `get` fails the test instead of hanging."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self.put = self._queue.put

    def get(self, seconds: float = HANGS) -> Any:
        return self._queue.get(timeout=seconds)

    def take(self, count: int) -> list[Any]:
        return [self.get() for _ in range(count)]

    def empty(self) -> bool:
        return self._queue.empty()


def eventually(condition: Callable[[], bool], seconds: float = HANGS) -> None:
    """Wait until a condition that has no event of its own holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def local_descriptors() -> int:
    """Return how many descriptors of pipes, memory and sockets of one host this process has: none of them is gRPC's."""
    names = {line.split()[6] for line in Path("/proc/net/unix").read_text("utf-8").splitlines()[1:]}
    ours = {f"socket:[{inode}]" for inode in names}
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the folder's own descriptor is
            name = str(entry.readlink())
            found += name in ours or name.startswith(("pipe:", "/memfd:"))
    return found


@contextmanager
def no_threads_left() -> Iterator[None]:
    """Fail unless every thread that was started inside ends."""
    before = set(threading.enumerate())
    yield
    # gRPC's own threads end shortly after the channel or server that they belong to.
    eventually(lambda: not set(threading.enumerate()) - before)
