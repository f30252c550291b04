"""A Ray cluster on this machine, in a process of its own that outlives the coordinator.

``python -m services.coordinator.local_cluster STATE CPUS`` starts it, writes its process id and then its address into
``STATE/ray.json``, and ends it on SIGTERM. It holds the lock ``STATE/ray.lock`` as long as it lives, by which others
know that the process of that id is still the one that wrote it. When one of the processes without which there is no
cluster ends, it ends the others: a cluster is whole or not there, so that whoever needs it can tell, and starts another.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lowdimfa.errors import ResourceError
from services.coordinator.private import own_file
from services.trainer.cluster import unreachable

START_LIVENESS = 2.0
"""A cluster may take this many times the liveness to start."""

LEAST_CPUS = 4
"""Counted even where there are fewer cores, so that the examples, which have four blocks, run on a small machine."""

VITAL = frozenset({"gcs_server", "raylet"})
"""Names of the processes without which there is no cluster."""

WATCH_SECONDS = 1.0
"""Between looks at them."""

POLL_SECONDS = 0.1
"""Between looks whether a cluster has started."""

LOCK_SECONDS = 10.0
"""Longest wait for the lock of a cluster's directory: others take it for a moment, to see whether it is held."""

_PR_SET_CHILD_SUBREAPER = 36


class LocalCluster:
    """The cluster of one state directory: found running, or started. Any thread may call.

    Parameters
    ----------
    state
        The coordinator's directory, which is there; also gets the cluster's log, ``ray.log``.
    liveness
        Seconds from which the deadlines derive.
    cpus
        That the cluster counts; by default those of the machine, and at least `LEAST_CPUS`.

    Attributes
    ----------
    fresh
        Whether this object started it.
    """

    def __init__(self, state: Path, liveness: float, cpus: int | None = None) -> None:
        self._file, self._log = state / "ray.json", state / "ray.log"
        self._state, self._liveness = state, liveness
        self._cpus = cpus if cpus is not None else max(LEAST_CPUS, os.cpu_count() or 1)
        self._turn, self._unwanted = threading.Lock(), threading.Event()
        self.fresh = False

    def address(self) -> str:
        """Return its address; start it if it isn't running.

        Raises
        ------
        ResourceError
            It doesn't come up in time, or `end` was called.
        """
        with self._turn:
            found = self._running()
            if found is not None:
                process, address = found
                if address and not unreachable(address, self._liveness / 6):
                    return address
                self._end(process)
            return self._start()

    def end(self) -> None:
        """End it for good, also while it starts, and wait for that; nothing happens if it isn't running."""
        self._unwanted.set()
        with self._turn:
            found = self._running()
            if found is not None:
                self._end(found[0])

    def _end(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _, alive = psutil.wait_procs([process], timeout=self._liveness / 2)
        for still in alive:
            destroy(still)
        self._file.unlink(missing_ok=True)

    def _running(self) -> tuple[psutil.Process, str] | None:
        """Return process and address, which is empty while it starts; None if it isn't running."""
        lock = _lock(self._state)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        else:
            lock.release()
            return None
        try:
            noted = json.loads(self._file.read_text("utf-8"))
            return psutil.Process(int(noted["pid"])), str(noted["address"])
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def _start(self) -> str:
        self._file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "services.coordinator.local_cluster",
            str(self._state),
            str(self._cpus),
        ]
        with own_file(self._log).open("ab") as log:
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_LIVENESS * self._liveness
        while time.monotonic() < deadline and not self._unwanted.wait(POLL_SECONDS):
            found = self._running()
            if found is not None and found[1]:
                self.fresh = True
                return found[1]
            code = process.poll()
            if code is not None:
                raise ResourceError(
                    f"Ray could not be started on this machine (exit code {code}); its log is {self._log}"
                )
        destroy(process)
        self._file.unlink(missing_ok=True)
        if self._unwanted.is_set():
            raise ResourceError("the service ends; no Ray is started for it any more")
        raise ResourceError(
            f"Ray did not start within {START_LIVENESS * self._liveness:g} s; its log is {self._log}; raise "
            "--liveness, or start a cluster and give --ray-address"
        )


def main() -> None:
    """Hold a cluster until SIGTERM, or until it is no longer whole."""
    state, cpus = Path(sys.argv[1]), int(sys.argv[2])
    own = psutil.Process()
    with _lock(state).acquire(timeout=LOCK_SECONDS):
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

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: told.set())
    vital = [child for child in own.children() if child.name() in VITAL]
    _note(state, own.pid, ray.get_runtime_context().gcs_address)
    while not told.wait(WATCH_SECONDS):
        if not all(map(lives, vital)):
            print("a process of the cluster has ended; the others are ended too", file=sys.stderr, flush=True)
            end_family(own)
            os._exit(1)  # Ray's own end would wait for what is gone
    ray.shutdown()


def _lock(state: Path) -> FileLock:
    return FileLock(own_file(state / "ray.lock"))


def _note(state: Path, pid: int, address: str) -> None:
    scratch = own_file(state / "ray.json.tmp")
    scratch.write_text(json.dumps({"pid": pid, "address": address}), "utf-8")
    scratch.replace(state / "ray.json")


def adopt_orphans() -> None:
    """Become the parent of processes below this one that lose theirs: Ray's workers may outlive their node."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_family(process: psutil.Process) -> None:
    """Kill all processes below one, also those that others of them leave behind."""
    while family := [child for child in process.children(recursive=True) if lives(child)]:
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=WATCH_SECONDS)


def destroy(process: psutil.Process | psutil.Popen) -> None:
    """Kill a process and all below it; it is halted first, so that it starts no more of them."""
    with contextlib.suppress(psutil.Error):
        process.suspend()
        end_family(process)
        process.kill()
    psutil.wait_procs([process], timeout=WATCH_SECONDS)


if __name__ == "__main__":
    main()
