"""A Ray cluster over several hosts, with a node on each."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.throughput.hosts import Hosts

PORT = 6379
START_SECONDS = 120.0

SURVIVED_CUT_SECONDS = 2.0
"""A cut that must not cost a node: one or two health checks fail, the fourth in a row counts."""

NODE_DEATH_SECONDS = 12.0
"""Until Ray calls a node dead that is cut off: four checks of 1.5 s each, a second between them, and a margin.

With its own settings it needs a minute.
"""

HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "15000",  # while a cluster starts, busy processors keep nodes waiting
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "4",
}


class RayHosts:
    """A Ray node on each host: host 0 has the cluster's head and no room for blocks, the others have some.

    Parameters
    ----------
    hosts
        Where the nodes run.
    count
        How many nodes.
    folder
        For all that Ray writes. Its path must be short, because sockets lie in it.
    cpus
        Blocks for which each host but the first has room.

    Attributes
    ----------
    address
        Of the cluster.
    environment
        For whatever joins it.
    """

    def __init__(self, hosts: Hosts, count: int, folder: Path, cpus: int = 1) -> None:
        self.hosts = hosts
        self._cpus = cpus
        self.address = f"{hosts.address(0)}:{PORT}"
        self.environment = (
            os.environ
            | HEALTH_CHECKS
            | {
                "OMP_NUM_THREADS": "1",
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )
        self._folder = folder
        started = [(host, self._start(host)) for host in range(count)]
        for host, node in started:
            self._await(host, node)

    def _start(self, host: int) -> subprocess.Popen[str]:
        command: list[object] = [Path(sys.executable).parent / "ray", "start", "--block"]
        if host:
            command += ["--address", self.address, "--num-cpus", self._cpus]
        else:
            command += ["--head", "--port", PORT, "--num-cpus", 0, "--include-dashboard", "false"]
        command += ["--node-ip-address", self.hosts.address(host), "--object-store-memory", 80_000_000]
        command += ["--temp-dir", self._folder / str(host)]
        with self._log(host).open("w") as log:
            return self.hosts.run(host, command, self.environment, stdout=log, stderr=subprocess.STDOUT)

    def _await(self, host: int, node: subprocess.Popen[str]) -> None:
        """Wait until a node is part of the cluster; Ray's own deadline of 30 s may need a second try."""
        deadline = time.monotonic() + START_SECONDS
        again = False
        while "Ray runtime started" not in self._log(host).read_text():
            if node.poll() is not None and not again:
                again = True
                self.hosts.kill(host)
                node = self._start(host)
            assert node.poll() is None and time.monotonic() < deadline, self._log(host).read_text()
            time.sleep(0.1)

    def _log(self, host: int) -> Path:
        return self._folder / f"node-{host}.log"

    def run(self, host: int, command: Sequence[object], stderr: Path) -> subprocess.Popen[str]:
        """Start a command on a host, which finds the cluster; its standard output is a pipe."""
        with stderr.open("w") as sink:
            return self.hosts.run(host, command, self.environment, stdout=subprocess.PIPE, stderr=sink)


@contextlib.contextmanager
def ray_hosts(count: int, cpus: int = 1, latency_ms: float = 0.0) -> Iterator[RayHosts]:
    """Give a cluster over ``count`` hosts, between which all takes longer, and leave nothing of it behind.

    Raises
    ------
    NoHostsError
        This machine can't have hosts.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-hosts-", dir="/tmp"))
    try:
        with Hosts(count, latency_ms) as hosts:
            yield RayHosts(hosts, count, folder, cpus)
    finally:
        shutil.rmtree(folder)
