"""Pipes beside shared memory: by one the sender says that a slot was written, by the other the receiver acknowledges.

A message then takes one system call and wakes one thread, where a message of a gRPC stream passes three threads at each
end. Like the memory, a pipe has no name: the sender makes both, and the receiver opens the sender's descriptors below
``/proc``.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

from lowdimfa.services.rpc.pipes import PipeEnd, make_pipe, open_end, place_of

_RECORD = 8  # bytes: a sequence, signed and little-endian
_NOTHING = -1
_READ = 512 * _RECORD


class Doorbell:
    """The sender's end of one connection's announcements: the next one has another, in which nothing of this is left.

    Parameters
    ----------
    messages
        Rings that it must hold while nobody listens.

    Raises
    ------
    OSError
        The system has no pipe, or none that long.
    """

    def __init__(self, messages: int) -> None:
        self._listening, self._ringing = make_pipe(messages * _RECORD)

    @property
    def place(self) -> PipeEnd:
        """What the receiver is to listen at."""
        return place_of(self._listening)

    def ring(self, sequence: int) -> None:
        """Announce the message with a sequence."""
        os.write(self._ringing, _record(sequence))

    def close(self) -> None:
        """Let a listener come to the end of what was announced."""
        os.close(self._ringing)
        os.close(self._listening)


class Receipts:
    """The sender's end of all connections' acknowledgements, and where it waits for them.

    Parameters
    ----------
    messages
        Receipts that it must hold while nobody takes them.

    Raises
    ------
    OSError
        The system has no pipe, or none that long.
    """

    def __init__(self, messages: int) -> None:
        self._reading, self._writing = make_pipe((messages + 1) * _RECORD)
        self._poll = select.poll()
        self._poll.register(self._reading, select.POLLIN)
        self._waiting = threading.Lock()  # no descriptor is closed, and its number given away, under a wait
        self._is_open = True

    @property
    def place(self) -> PipeEnd:
        """Where the receiver is to acknowledge."""
        return place_of(self._writing)

    def take(self) -> int:
        """Return the highest sequence that was acknowledged since the last call, or -1; for one thread at a time."""
        try:
            return max(_sequences(os.read(self._reading, _READ))) if self._is_open else _NOTHING
        except BlockingIOError:
            return _NOTHING

    def wait(self, seconds: float) -> None:
        """Wait for something to `take`, or for `wake`."""
        with self._waiting:
            if self._is_open:
                self._poll.poll(1000 * seconds)

    def wake(self) -> None:
        """End the present `wait`, or the next one."""
        if self._is_open:
            with suppress(BlockingIOError):  # it is full, which ends a wait as well
                os.write(self._writing, _record(_NOTHING))

    def close(self) -> None:
        """Let go of the pipe, which a receiver may keep."""
        self.wake()
        with self._waiting:
            if self._is_open:
                self._is_open = False
                os.close(self._reading)
                os.close(self._writing)


class Listener:
    """The receiver's end of both, for one connection.

    Parameters
    ----------
    process
        The sender's.
    bell, receipts
        Where that one's `Doorbell` and `Receipts` are.

    Raises
    ------
    OSError
        They can't be opened, or are not those pipes, of this user.
    """

    def __init__(self, process: int, bell: PipeEnd, receipts: PipeEnd) -> None:
        self._lock = threading.Lock()
        self._opened: list[int] = []
        try:
            self._bell = self._keep(open_end(process, bell, os.O_RDONLY))
            self._receipts = self._keep(open_end(process, receipts, os.O_WRONLY))
            self._stop = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            self.close()
            raise

    def sequences(self) -> Iterator[int]:
        """Yield what is announced, until `stop` or the sender's end."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not any(descriptor == self._stop for descriptor, _ in poll.poll()):
            records = os.read(self._bell, _READ)
            if not records:
                return
            yield from _sequences(records)

    def acknowledge(self, sequence: int) -> None:
        """Tell the sender that all messages up to one were consumed; nothing happens where it is gone."""
        with self._lock, suppress(BrokenPipeError, BlockingIOError):
            if self._opened:
                os.write(self._receipts, _record(sequence))

    def stop(self) -> None:
        """End `sequences` in whatever thread waits there."""
        with self._lock:
            if self._opened:
                os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Let go of the pipes, after `sequences`."""
        with self._lock:
            while self._opened:
                os.close(self._opened.pop())

    def _keep(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor


def _record(sequence: int) -> bytes:
    return sequence.to_bytes(_RECORD, "little", signed=True)


def _sequences(records: bytes) -> Iterator[int]:
    return (sequence for (sequence,) in struct.iter_unpack("<q", records))
