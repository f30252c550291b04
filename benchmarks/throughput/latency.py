"""Links that take their time: a relay in user space between hosts and their switch, where the kernel has no ``netem``.

``python -m benchmarks.throughput.latency SECONDS SWITCH HOST…``, of which the last are network namespaces, makes
``eth0`` in each host and ``port0``, ``port1``, … in the switch's, and carries frames between them: from a host to the
switch they take so long, from the switch to a host no time. So anything takes that much longer one way, and a round
trip twice as much.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_FRAME = 1 << 16
READY = "ready"


def start_relay(seconds: float, switch: str, hosts: Sequence[str]) -> subprocess.Popen[str]:
    """Start a relay between namespaces; it ends when it is killed.

    Raises
    ------
    RuntimeError
        It can't make its devices; what it said is on standard error.
    """
    command = [sys.executable, __file__, str(seconds), switch, *hosts]
    relay = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    if relay.stdout.readline().strip() != READY:
        relay.kill()
        raise RuntimeError(f"no links with latency: the relay ended with {relay.wait()}")
    return relay


def enter(namespace: str) -> None:
    """Move this thread to a network namespace."""
    with Path(f"/run/netns/{namespace}").open() as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"can't enter {namespace}")


def _tap(namespace: str, name: str) -> int:
    """Make an Ethernet device in a namespace; return the descriptor that has what is sent by it, and what it receives."""
    enter(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_WITHOUT_HEADER))
    return device


def carry(delays: dict[int, tuple[int, float]]) -> None:
    """Carry frames for ever: by descriptor, where those from it go, and after how many seconds."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    poll = select.epoll()
    for source in delays:
        poll.register(source, select.EPOLLIN)
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else -1
        for source, _ in poll.poll(patience):
            sink, delay = delays[source]
            with contextlib.suppress(BlockingIOError):
                while frame := os.read(source, _FRAME):
                    if delay:
                        waiting.append((time.monotonic() + delay, sink, frame))
                    else:
                        _write(sink, frame)
        while waiting and waiting[0][0] <= time.monotonic():
            _, sink, frame = waiting.popleft()
            _write(sink, frame)


def _write(sink: int, frame: bytes) -> None:
    # A device that is down, as behind a cut link, takes no frames.
    with contextlib.suppress(OSError):
        os.write(sink, frame)


def main() -> None:
    """Make the devices, say so, and carry."""
    seconds, switch, *hosts = sys.argv[1:]
    delays: dict[int, tuple[int, float]] = {}
    for number, host in enumerate(hosts):
        outside, inside = _tap(switch, f"port{number}"), _tap(host, "eth0")
        delays |= {inside: (outside, float(seconds)), outside: (inside, 0.0)}
    print(READY, flush=True)
    carry(delays)


if __name__ == "__main__":
    main()
