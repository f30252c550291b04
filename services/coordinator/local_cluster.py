"""A Ray cluster on this machine, in a process of its own that outlives the coordinator.

``python -m services.coordinator.local_cluster STATE CPUS`` starts it, writes its address and process id into
``STATE/ray.json``, and ends it on SIGTERM. When one of the processes without which there is no cluster ends, it ends
the others: a cluster is whole or not there, so that whoever needs it can tell, and starts another.
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

from lowdimfa.errors import ResourceError
from services.trainer.cluster import start_local, unreachable

START_LIVENESS = 2.0
"""A cluster may take this many times the liveness to start."""

LEAST_CPUS = 4
"""Counted even where there are fewer cores, so that the examples, which have four blocks, run on a small machine."""

VITAL = frozenset({"gcs_server", "raylet"})
"""Names of the processes without which there is no cluster."""

WATCH_SECONDS = 1.0
"""Between looks at them."""

_PR_SET_CHILD_SUBREAPER = 36


class LocalCluster:
    """The cluster of one state directory: found running, or started.

    Parameters
    ----------
    state
        The coordinator's directory; also has the cluster's log, ``ray.log``.
    liveness
        Seconds from which the deadlines derive.
    cpus
        That the cluster counts; by default those of the machine, and at least `LEAST_CPUS`.
    """

    def __init__(self, state: Path, liveness: float, cpus: int | None = None) -> None:
        self._file, self._log = state / "ray.json", state / "ray.log"
        self._state, self._liveness = state, liveness
        self._cpus = cpus if cpus is not None else max(LEAST_CPUS, os.cpu_count() or 1)

    def address(self) -> str:
        """Return its address; start it if it isn't running.

        Raises
        ------
        ResourceError
            It doesn't come up in time.
        """
        found = self._running()
        if found is not None:
            address = str(found[1])
            if not unreachable(address, self._liveness / 6):
                return address
            self.end()
        return self._start()

    def end(self) -> None:
        """End it, and wait for that; nothing happens if it isn't running."""
        found = self._running()
        if found is None:
            return
        process = found[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            process.terminate()
            psutil.wait_procs([process], timeout=self._liveness / 2)
            _, alive = psutil.wait_procs(family, timeout=self._liveness / 6)
            for member in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(alive, timeout=self._liveness / 6)
        self._file.unlink(missing_ok=True)

    def _running(self) -> tuple[psutil.Process, str] | None:
        """Return process and address, if the process of the file is still the one that wrote it."""
        try:
            noted = json.loads(self._file.read_text("utf-8"))
            process = psutil.Process(int(noted["pid"]))
            if process.create_time() != float(noted["created"]) or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process, str(noted["address"])
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def _start(self) -> str:
        self._state.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "services.coordinator.local_cluster",
            str(self._state),
            str(self._cpus),
        ]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_LIVENESS * self._liveness
        while time.monotonic() < deadline:
            found = self._running()
            if found is not None:
                return found[1]
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
                raise ResourceError(
                    f"Ray could not be started on this machine (exit code {code}); its log is {self._log}"
                )
        process.kill()
        process.wait()
        raise ResourceError(
            f"Ray did not start within {START_LIVENESS * self._liveness:g} s; its log is {self._log}; raise "
            "--liveness, or start a cluster and give --ray-address"
        )


def main() -> None:
    """Hold a cluster until SIGTERM, or until it is no longer whole."""
    state, cpus = Path(sys.argv[1]), int(sys.argv[2])
    told = threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    adopt_orphans()
    import ray  # after the settings

    start_local(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: told.set())
    own = psutil.Process()
    vital = [child for child in own.children() if child.name() in VITAL]
    noted = {
        "pid": own.pid,
        "created": own.create_time(),
        "address": ray.get_runtime_context().gcs_address,
    }
    scratch = state / "ray.json.tmp"
    scratch.write_text(json.dumps(noted), "utf-8")
    scratch.replace(state / "ray.json")
    while not told.wait(WATCH_SECONDS):
        if not all(map(lives, vital)):
            print("a process of the cluster has ended; the others are ended too", file=sys.stderr, flush=True)
            end_family(own)
            os._exit(1)  # Ray's own end would wait for what is gone
    ray.shutdown()


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


if __name__ == "__main__":
    main()
