"""What the processes of a run take while it goes, and what is left of them after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.manifest import MANIFEST_FILE
from lowdimfa.services.trainer.families import below
from lowdimfa.services.trainer.run_dir import targets_file

PERIOD_SECONDS = 0.5
RAY_TITLE = "ray::"
"""How Ray names the processes of its actors: a process of another name only has the number of one elsewhere."""


@dataclass(frozen=True)
class Sample:
    """What a process took at a moment: Unix seconds, counts, and resident memory in bytes."""

    time: float
    threads: int
    descriptors: int
    memory: int


@dataclass
class Watched:
    """A process of a run on this machine.

    Attributes
    ----------
    role
        ``trainer`` or ``block 1``.
    process
        Known by its number and its start, so that a later process of the same number isn't taken for it.
    samples
        The oldest first.
    """

    role: str
    process: psutil.Process
    samples: list[Sample] = field(default_factory=list)


class ProcessWatch:
    """Looks at a run's processes every `PERIOD_SECONDS`; a context manager.

    Parameters
    ----------
    descendants
        Whether whatever this process starts meanwhile is the run's too, as a Ray of its own.

    Attributes
    ----------
    watched
        Every process of the run that was seen here.
    elsewhere
        Processes of the run that are not on this machine.
    most_processes
        Of the trainer and the blocks at a time.
    """

    def __init__(self, descendants: bool) -> None:
        self._own = psutil.Process()
        self._descendants = descendants
        self._before = below(self._own) if descendants else set()
        self._seen: set[psutil.Process] = set()
        self._ports: set[int] = set()
        self.watched: list[Watched] = []
        self.elsewhere: set[int] = set()
        self.most_processes = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drill watch", daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def saw(self, event: Event) -> None:
        """Take the processes that an event of the run names."""
        pids = event.get("pids") if event["event"] in ("started", "recovered") else None
        if pids is None:
            return
        roles = [("trainer", pids["trainer"])] if "trainer" in pids else []
        roles += [(f"block {index}", pid) for index, pid in enumerate(pids["blocks"])]
        with self._lock:
            for role, pid in roles:
                self._add(role, pid)

    def left(self, patience: float) -> list[str]:
        """Return what processes and ports of the run are still there after at most ``patience`` seconds.

        Call it after the watch has ended.
        """
        _, still = psutil.wait_procs(list(self._seen), patience)
        alive = [process for process in still if not _ended(process)]
        processes = [f"process {process.pid} ({_title(process)})" for process in alive]
        owners = {process.pid for process in alive} | {self._own.pid}
        listening = {
            (port, pid)
            for port, pid in _listening(psutil.net_connections("tcp"))
            if pid in owners and port in self._ports
        }
        return processes + [f"port {port} (process {pid})" for port, pid in sorted(listening)]

    def _add(self, role: str, pid: int) -> None:
        if any(watched.process.pid == pid and watched.process.is_running() for watched in self.watched):
            return
        try:
            process = psutil.Process(pid)
            if not _title(process).startswith(RAY_TITLE):
                raise psutil.NoSuchProcess(pid)
        except psutil.Error:  # on another machine, or gone already
            self.elsewhere.add(pid)
            return
        self._seen.add(process)
        self.watched.append(Watched(role, process))

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_SECONDS):
            with self._lock:
                watched = list(self.watched)
            alive = sum(self._look(entry) for entry in watched)
            self.most_processes = max(self.most_processes, alive)
            if self._descendants:
                self._seen |= below(self._own) - self._before

    def _look(self, watched: Watched) -> bool:
        process = watched.process
        try:
            if _ended(process):
                return False
            with process.oneshot():
                threads, memory = process.num_threads(), process.memory_info().rss
            watched.samples.append(Sample(time.time(), threads, process.num_fds(), memory))
            self._ports |= {port for port, _ in _listening(process.net_connections("tcp"))}
        except psutil.Error:
            return False
        return True


def files_left(run_dir: Path) -> list[str]:
    """Return what a run that has ended should have removed: what is unfinished, and its list for Prometheus."""
    torn = {path for path in run_dir.glob("checkpoints/*") if not (path / MANIFEST_FILE).exists()}
    unfinished = sorted({*torn, *(path for path in run_dir.rglob("*") if path.name.endswith(".partial"))})
    targets = targets_file(run_dir)
    return [str(path) for path in (*unfinished, *([targets] if targets.exists() else []))]


def _listening(connections: Iterable[Any]) -> Iterator[tuple[int, int | None]]:
    """Yield port and process of what listens; the connections of one process don't say whose they are."""
    for entry in connections:
        if entry.status == psutil.CONN_LISTEN:
            yield entry.laddr.port, getattr(entry, "pid", None)


def _ended(process: psutil.Process) -> bool:
    """Whether nothing of a process is left but its number, which its parent has not taken note of."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip() or process.name()
    except psutil.Error:
        return "ended"
