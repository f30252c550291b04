"""The error broadcast between processes of one host: the same messages, by a pipe of the subscriber's.

A message of a gRPC stream passes several threads at each end; here it is one system call for the head, and one thread
that wakes in the subscriber. The stream stays open beside the pipe: for acceptance, for the loss of either end, and for
what finds no room in the pipe.
"""

from __future__ import annotations

import os
import re
import select
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from lowdimfa.services.rpc.pipes import make_pipe, open_end, place_of

#: The metadata key of a subscriber's offer.
PIPE_KEY = "lowdimfa-pipe"

PIPE_BYTES = 1 << 18
"""Of a subscriber's pipe: some twenty errors of 10 KB. What is larger goes by gRPC."""

_LENGTH = struct.Struct("<I")
_OFFER = re.compile(r"([0-9a-f-]{36}):(pid:\[\d{1,20}\]):(\d{1,10}):(\d{1,10}):(\d{1,20})", re.ASCII)


@cache
def _host() -> str:
    """Return what processes have in common that can open each other's descriptors: kernel and process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"


def framed(messages: Sequence[bytes]) -> bytes:
    """Return messages as they lie in a pipe: each after its length."""
    return b"".join(part for message in messages for part in (_LENGTH.pack(len(message)), message))


class Inlet:
    """The subscriber's end, for one connection.

    Raises
    ------
    OSError
        The system has no such pipe.
    """

    def __init__(self) -> None:
        host = _host()
        self._reading, self._writing = make_pipe(PIPE_BYTES)
        self._told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._abandoned = False
        number, inode = place_of(self._writing)
        self.offer = f"{host}:{os.getpid()}:{number}:{inode}"

    def messages(self) -> Iterator[bytes]:
        """Yield what arrives until `finish`; a message of which a part is missing then never was one."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        poll.register(self._told, select.POLLIN)
        arrived = bytearray()
        finishing = False
        while not finishing:
            finishing = any(descriptor == self._told for descriptor, _ in poll.poll())
            while not self._abandoned and (read := self._read()):
                arrived += read
                while len(arrived) >= _LENGTH.size:
                    end = _LENGTH.size + _LENGTH.unpack_from(arrived)[0]
                    if len(arrived) < end:
                        break
                    message = bytes(memoryview(arrived)[_LENGTH.size : end])
                    del arrived[:end]
                    yield message
                if not finishing and len(read) < PIPE_BYTES:
                    break  # that was all: to try once more would cost as much as the message

    def _read(self) -> bytes:
        try:
            return os.read(self._reading, PIPE_BYTES)
        except BlockingIOError:
            return b""

    def finish(self, *, abandon: bool = False) -> None:
        """Let `messages` end after what has arrived, or at once."""
        self._abandoned = abandon
        os.eventfd_write(self._told, 1)

    def close(self) -> None:
        """Let go of the pipe, after `messages`."""
        for descriptor in (self._reading, self._writing, self._told):
            os.close(descriptor)


class Outlet:
    """The head's end of a subscriber's pipe, of which it has the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, record: bytes) -> bool:
        """Write what `framed` returned; return whether all of it found room. If not, nothing may follow."""
        try:
            return os.write(self._descriptor, record) == len(record)
        except (BlockingIOError, BrokenPipeError):
            return False

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def open_outlet(offer: str) -> Outlet | None:
    """Open a subscriber's pipe, or return None where that can't be done: on another host, above all."""
    found = _OFFER.fullmatch(offer)
    try:
        if found is None or f"{found[1]}:{found[2]}" != _host():
            return None
        return Outlet(open_end(int(found[3]), (int(found[4]), int(found[5])), os.O_WRONLY))
    except (OSError, ValueError):
        return None
