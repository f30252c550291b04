"""Several hosts on one machine: network namespaces joined by a switch, whose links can be cut or slowed down."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import psutil

from benchmarks.throughput.latency import start_relay

GONE_SECONDS = 20.0
"""Longest time that killed processes get to disappear."""


QUEUE_SECONDS = 0.05
"""What a slow link holds back at most before it drops: as much as it carries in this time."""

LEAST_QUEUE_BYTES = 128 * 1024

RELAYED_FRAME = 9000
"""Bytes of the largest frame on links with latency."""


class NoHostsError(Exception):
    """Network namespaces can't be made on this machine, or by this user; the message says why."""


class Hosts:
    """Network namespaces, each with a loopback and one link to a bridge in a namespace of its own.

    They share the machine's files and process identifiers, and nothing of its network: any port is free in each.
    Whatever runs in them is killed at the end, and they are removed.

    Parameters
    ----------
    count
        How many.
    latency_ms
        How much longer anything takes from one host to another, by `benchmarks.throughput.latency`.

    Raises
    ------
    NoHostsError
        This machine, or this user, can't make network namespaces.
    """

    def __init__(self, count: int, latency_ms: float = 0.0) -> None:
        self._prefix = f"lowdimfa-{os.getpid()}"
        self._network = (
            f"10.77.{os.getpid() % 256}"  # Ray looks at all processes for clusters of its own address
        )
        self._count, self._latency = count, latency_ms / 1e3
        self._relay: subprocess.Popen[str] | None = None
        self._made: list[str] = []

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, host: int) -> str:
        """Return a host's address."""
        return f"{self._network}.{host + 1}"

    def inside(self, host: int) -> list[str]:
        """Return the beginning of a command that runs the rest of it on a host."""
        # `ip netns exec` would hide the machine's control groups, from which Ray reads its limits.
        return ["nsenter", f"--net=/run/netns/{self.name(host)}", "--"]

    def run(
        self, host: int, command: Sequence[object], environment: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in a session of its own; its process identifier is the command's.

        Parameters
        ----------
        host
            Index of the host.
        command, environment
            What to run.
        options
            For `subprocess.Popen`.
        """
        return subprocess.Popen(
            [*self.inside(host), *map(str, command)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **options,
        )

    def cut(self, host: int) -> None:
        """Take a host's port at the switch down, as a pulled cable does: both sides' packets are lost in silence."""
        self._ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        """Take it up again."""
        self._ip("-n", self._switch, "link", "set", f"port{host}", "up")

    def slow(self, host: int, mbit: int) -> None:
        """Limit what a host's link carries, in each direction, with a token bucket.

        Parameters
        ----------
        host
            Index of the host.
        mbit
            Megabits per second.

        Raises
        ------
        NoHostsError
            The kernel has no token bucket, or ``tc`` is missing.
        """
        if shutil.which("tc") is None:
            raise NoHostsError("no command 'tc'; Debian's package is iproute2")
        rate = mbit * 1_000_000 // 8
        burst = max(rate // 250, 16 * 1024)  # a kernel that ticks 250 times a second can't do with less
        queue = max(int(rate * QUEUE_SECONDS), LEAST_QUEUE_BYTES) + burst
        for name, device in ((self.name(host), "eth0"), (self._switch, f"port{host}")):
            command = ["tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf"]
            command += ["rate", f"{mbit}mbit", "burst", str(burst), "limit", str(queue)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise NoHostsError(
                    f"a link can't be slowed down ({' '.join(command)}): {done.stderr.strip()}"
                )

    def processes(self, host: int) -> list[psutil.Process]:
        """Return what runs on a host."""
        return _processes(self.name(host))

    def host_of(self, pid: int) -> int:
        """Return the host on which a process runs."""
        return next(
            host for host in range(self._count) if any(process.pid == pid for process in self.processes(host))
        )

    def kill(self, host: int) -> None:
        """Kill whatever runs on a host.

        Raises
        ------
        RuntimeError
            Something does not go away.
        """
        if alive := _kill_all(self.name(host)):
            raise RuntimeError(f"{self.name(host)}: {_unkillable(alive)}")

    def close(self) -> None:
        """Kill all processes on all hosts and remove the hosts.

        Raises
        ------
        RuntimeError
            Something could not be removed; the message says what.
        """
        left = []
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for name in reversed(self._made):
            if alive := _kill_all(name):
                left.append(f"{name}: {_unkillable(alive)}")
            removed = subprocess.run(["ip", "netns", "del", name], capture_output=True, text=True)
            if removed.returncode:
                left.append(f"{name}: {removed.stderr.strip()}")
        self._made.clear()
        if left:
            raise RuntimeError(f"network namespaces are left behind; {'; '.join(left)}")

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def name(self, host: int) -> str:
        """Return the name of a host's namespace."""
        return f"{self._prefix}-host{host}"

    def _make(self) -> None:
        if os.geteuid():
            raise NoHostsError("network namespaces need root")
        for tool, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
            if shutil.which(tool) is None:
                raise NoHostsError(f"no command '{tool}'; Debian's package is {package}")
        added = subprocess.run(["ip", "netns", "add", self._switch], capture_output=True, text=True)
        if added.returncode:
            raise NoHostsError(f"network namespaces can't be made here: {added.stderr.strip()}")
        self._made.append(self._switch)
        self._ip("-n", self._switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        self._ip("-n", self._switch, "link", "set", "bridge", "up")
        names = [self.name(host) for host in range(self._count)]
        for name in names:
            self._ip("netns", "add", name)
            self._made.append(name)
        if self._latency:
            self._relay = start_relay(self._latency, self._switch, names)
        for host in range(self._count):
            self._connect(host)

    def _connect(self, host: int) -> None:
        name, port = self.name(host), f"port{host}"
        if self._relay is None:
            pair = ("type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("-n", self._switch, "link", "add", port, *pair)
        else:  # fewer frames, each of which passes a process
            for place, device in ((self._switch, port), (name, "eth0")):
                self._ip("-n", place, "link", "set", device, "mtu", str(RELAYED_FRAME))
        self._ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        # Programs that look for their own address ask for the route to somewhere far away.
        self._ip("-n", name, "route", "add", "default", "dev", "eth0")

    def _ip(self, *arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _processes(name: str) -> list[psutil.Process]:
    """Return the processes in a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    found = []
    for pid in map(int, listed.stdout.split()):
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:  # it ended in between
            continue
    return found


def _kill_all(name: str) -> list[psutil.Process]:
    """Kill all processes in a namespace, also those that they start meanwhile; return those that live on."""
    deadline = time.monotonic() + GONE_SECONDS
    while (alive := _processes(name)) and time.monotonic() < deadline:
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=1.0)
    return alive


def _unkillable(processes: list[psutil.Process]) -> str:
    return f"processes {[process.pid for process in processes]} can't be killed"
