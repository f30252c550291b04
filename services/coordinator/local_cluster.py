"""A Ray cluster on this machine, found or started: `lowdimfa.services.coordinator.ray_holder` holds it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lowdimfa.errors import ResourceError
from lowdimfa.services.coordinator.private import own_file
from lowdimfa.services.coordinator.ray_holder import lock_file
from lowdimfa.services.trainer.cluster import unreachable
from lowdimfa.services.trainer.families import destroy

START_LIVENESS = 2.0
"""A cluster may take this many times the liveness to start."""

LEAST_CPUS = 4
"""Counted even where there are fewer cores, so that the examples, which have four blocks, run on a small machine."""

POLL_SECONDS = 0.1
"""Between looks whether a cluster has started."""


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
        lock = FileLock(own_file(lock_file(self._state)))
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
            "lowdimfa.services.coordinator.ray_holder",
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
