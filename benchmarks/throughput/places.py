"""Where the processes of a measurement run: all on this machine, or each on a host of its own behind a slow link."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.throughput.process import Worker
from benchmarks.throughput.ray_hosts import RayHosts, ray_hosts

FIRST_PORT = 29_500


@dataclass
class LocalPlace:
    """All processes on this machine, talking over its loopback interface; Ray is started for the measurement."""

    folder: Path
    ray_address: str | None = None
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def worker(self, rank: int, name: str, configuration: Mapping[str, Any]) -> Worker:
        """Start a process of a system."""
        log = self.folder / f"{name}-{rank}.log"
        return Worker(configuration, log, environment={"GLOO_SOCKET_IFNAME": "lo"})

    def trainer(self, name: str, configuration: Mapping[str, Any]) -> Worker:
        """Start the process that drives this runtime's engines."""
        return self.worker(0, name, configuration)

    def meet(self) -> str:
        """Return an address at which the processes of a group find each other."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"


class HostsPlace:
    """Each block, and each process of a peer, on a host of its own; host 0 has the driver and Ray's head."""

    def __init__(self, cluster: RayHosts, folder: Path) -> None:
        self.folder = folder
        self._cluster = cluster
        self.ray_address: str | None = cluster.address
        # Blocks on several nodes talk over mutual TLS, which is how this runtime does it everywhere.
        self.sections = {"placement": {"strategy": "SPREAD"}, "run": {"metrics": "node"}}
        self._ports = iter(range(FIRST_PORT, FIRST_PORT + 1000))

    def worker(self, rank: int, name: str, configuration: Mapping[str, Any]) -> Worker:
        """Start a process of a system on its host."""
        return self._start(rank + 1, name, configuration, {"GLOO_SOCKET_IFNAME": "eth0"})

    def trainer(self, name: str, configuration: Mapping[str, Any]) -> Worker:
        """Start the process that drives this runtime's engines."""
        return self._start(0, name, configuration, self._cluster.environment)

    def meet(self) -> str:
        """Return an address at which the processes of a group find each other."""
        return f"{self._cluster.hosts.address(1)}:{next(self._ports)}"

    def _start(
        self, host: int, name: str, configuration: Mapping[str, Any], environment: Mapping[str, str]
    ) -> Worker:
        log = self.folder / f"{name}-host{host}.log"
        return Worker(configuration, log, self._cluster.hosts.inside(host), environment)


Place = LocalPlace | HostsPlace


@contextlib.contextmanager
def place_for(
    folder: Path, blocks: int, engines: int, mbit: int | None, latency_ms: float = 0.0
) -> Iterator[Place]:
    """Give the place of a measurement.

    Parameters
    ----------
    folder
        For logs and runs.
    blocks, engines
        Of this runtime, which all have room at the same time.
    mbit
        Limit of each host's link in each direction, or None.
    latency_ms
        How much longer anything takes from one host to another. Without both all is on one machine.

    Raises
    ------
    NoHostsError
        Links can't be limited here.
    """
    if mbit is None and not latency_ms:
        yield LocalPlace(folder)
        return
    with ray_hosts(blocks + 1, engines, latency_ms) as cluster:
        if mbit is not None:
            for host in range(1, blocks + 1):
                cluster.hosts.slow(host, mbit)
        yield HostsPlace(cluster, folder)
