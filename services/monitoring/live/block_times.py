"""What the blocks of a running job compute and wait for, from the metrics that their processes serve."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from lowdimfa.services.monitoring.live.curve import is_number
from lowdimfa.services.monitoring.targets import read_targets

_KINDS = {"lowdimfa_block_busy_seconds": "kind", "lowdimfa_block_waiting_seconds": "cause"}
"""By metric, without a counter's ``_total``, the label that says what the seconds went into."""

LOOK_SECONDS = 2.0
"""Pause between looks."""

WINDOW_SECONDS = 20.0
"""Over which shares are taken, once a process was looked at for so long."""

MOST_MISSED = 2
"""Looks in a row that find nothing of a block that is still shown; a process may be slow to answer once."""

MOST_BYTES, MOST_TARGETS, AT_ONCE, PATIENCE = 1 << 20, 512, 8, 2.0
"""Of one process's metrics; processes; requests at a time; seconds for each."""

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A share of a block's time: ``forward``, ``update``, … or ``wait: activation`` and the like."""

    name: str
    share: float


class BlockTime(NamedTuple):
    """A block, or a replica of one, and what its time went into; shares add up to at most 1."""

    name: str
    parts: list[Part]

    @property
    def busy(self) -> float:
        """The share that it computed."""
        return sum(part.share for part in self.parts if not part.name.startswith("wait"))


_Seconds = dict[str, float]


class BlockTimes:
    """Looks at the processes of one job, in a thread of its own and only when somebody asks.

    Parameters
    ----------
    targets
        File that says where they serve their metrics, as Prometheus reads it.
    """

    def __init__(self, targets: Path) -> None:
        self._targets = targets
        self._lock = threading.Lock()
        self._next = 0.0
        self._looks: dict[tuple[int, int], deque[tuple[float, _Seconds]]] = {}
        self._missed: dict[tuple[int, int], int] = {}

    def shares(self) -> list[BlockTime]:
        """Return the latest shares, block by block, and have a new look taken if it is time; never waits for it."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next + WINDOW_SECONDS:
                self._looks.clear()  # nobody has asked for a while
            if now >= self._next:
                self._next = float("inf")
                threading.Thread(target=self._look, name="block times", daemon=True).start()
            found = [(key, list(looks)) for key, looks in sorted(self._looks.items())]
        return [_shares(block, replica, looks) for (block, replica), looks in found if len(looks) > 1]

    def _look(self) -> None:
        try:
            addresses = islice(_addresses(self._targets), MOST_TARGETS)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                read = list(pool.map(_read, addresses))
            found = {key: seen for one in read for key, seen in one.items()}
            with self._lock:
                for key, (at, seconds) in found.items():
                    self._keep(key, at, seconds)
                self._missed = {
                    key: 0 if key in found else self._missed.get(key, 0) + 1 for key in self._looks
                }
                for key, missed in self._missed.items():
                    if missed > MOST_MISSED:
                        del self._looks[key]  # lost, at its end, or cut otherwise
        finally:
            with self._lock:
                self._next = time.monotonic() + LOOK_SECONDS

    def _keep(self, key: tuple[int, int], at: float, seconds: _Seconds) -> None:
        looks = self._looks.setdefault(key, deque())
        if looks and sum(seconds.values()) < sum(looks[-1][1].values()):
            looks.clear()  # another process has taken its place
        looks.append((at, seconds))
        while len(looks) > 2 and looks[1][0] < at - WINDOW_SECONDS:
            looks.popleft()


def _shares(block: int, replica: int, looks: list[tuple[float, _Seconds]]) -> BlockTime:
    (began, before), (ended, after) = looks[0], looks[-1]
    taken = {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in after.items()}
    # What a process had counted is a moment older than its answer, so that the sum may be more than the time between.
    whole = max(ended - began, sum(taken.values()), 1e-9)
    parts = [Part(name, seconds / whole) for name, seconds in taken.items() if seconds]
    return BlockTime(f"block {block}" + (f", replica {replica}" if replica else ""), parts)


def _addresses(path: Path) -> Iterator[str]:
    """Yield where blocks serve metrics; what isn't as a trainer writes it is left out."""
    try:
        for target in read_targets(path, path.stem):
            if target["role"] != "trainer":
                yield target["address"]
    except FileNotFoundError:
        return  # nothing runs, or it serves no metrics
    except (OSError, ValueError):
        _log.debug("the targets in %s can't be read", path)


def _read(address: str) -> dict[tuple[int, int], tuple[float, _Seconds]]:
    """Return when, and how many seconds by what they went into, of the block at an address; nothing if it is away.

    No proxy, and no redirection: the address is that of a process of a job.
    """
    try:
        ends = time.monotonic() + PATIENCE
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.connect()
            connection.sock = _Hurried(connection.sock, ends)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read(MOST_BYTES).decode()
        at = time.monotonic()
        found: dict[tuple[int, int], tuple[float, _Seconds]] = {}
        for key, name, seconds in _samples(text):
            found.setdefault(key, (at, {}))[1][name] = seconds
        return found
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return {}


class _Hurried(socket.socket):
    """A connection that is given up at a moment of the monotonic clock, though a little comes again and again."""

    def __init__(self, connected: socket.socket, ends: float) -> None:
        super().__init__(fileno=connected.detach())
        self.settimeout(PATIENCE)
        self._ends = ends

    def recv_into(self, *given: Any) -> int:
        """Receive what comes until then."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*given)


def _samples(text: str) -> Iterator[tuple[tuple[int, int], str, float]]:
    for family in text_string_to_metric_families(text):
        label = _KINDS.get(family.name)
        for sample in family.samples if label else ():
            if not is_number(sample.value):
                continue
            labels: dict[str, Any] = sample.labels
            name = labels[str(label)] if label == "kind" else f"wait: {labels['cause']}"
            yield (int(labels["block"]), int(labels["replica"])), name[:40], sample.value
