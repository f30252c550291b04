"""A process that holds a Ray cluster on this machine, which outlives the coordinator.

``python -m lowdimfa.services.coordinator.ray_holder STATE CPUS`` starts it, writes its process id and then its
address into ``STATE/ray.json``, and ends it on SIGTERM. It holds the lock ``STATE/ray.lock`` as long as it lives, by
which others know that the process of that id is still the one that wrote it. When one of the processes without which
there is no cluster ends, it ends the others: a cluster is whole or not there, so that whoever needs it can tell, and
starts another.

Only what it needs is imported, since a service waits for it to start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
from filelock import FileLock

from lowdimfa.services.trainer.families import adopt_orphans, below, end_family, lives

VITAL = frozenset({"gcs_server", "raylet"})
"""Names of the processes without which there is no cluster."""

WATCH_SECONDS = 1.0
"""Between looks at them."""

LOCK_SECONDS = 10.0
"""Longest wait for the lock of a cluster's directory: others take it for a moment, to see whether it is held."""


def main() -> None:
    """Hold a cluster until SIGTERM, or until it is no longer whole."""
    state, cpus = Path(sys.argv[1]), int(sys.argv[2])
    own = psutil.Process()
    with FileLock(lock_file(state), mode=0o600).acquire(timeout=LOCK_SECONDS):
        _note(state, own.pid, "")
        adopt_orphans()
        try:
            _hold(state, own, cpus)
        finally:
            end_family(own)


def _hold(state: Path, own: psutil.Process, cpus: int) -> None:
    told = threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # while it starts, whose children `main` then ends
    import ray  # after the settings

    from lowdimfa.services.trainer.local_ray import start_local

    cluster = start_local(num_cpus=cpus)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: told.set())
    vital = [process for process in below(own) if process.name() in VITAL]
    _note(state, own.pid, ray.get_runtime_context().gcs_address)
    while not told.wait(WATCH_SECONDS):
        if not all(map(lives, vital)):
            print("a process of the cluster has ended; the others are ended too", file=sys.stderr, flush=True)
            end_family(own)
            cluster.forget()
            os._exit(1)  # Ray's own end would wait for what is gone
    cluster.end()


def lock_file(state: Path) -> Path:
    """Return the file that whoever holds the cluster of a directory has locked."""
    return state / "ray.lock"


def _note(state: Path, pid: int, address: str) -> None:
    scratch = state / "ray.json.tmp"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"pid": pid, "address": address}, file)
    scratch.replace(state / "ray.json")


if __name__ == "__main__":
    main()
