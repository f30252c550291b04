"""What a sender of activations keeps until it is acknowledged."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from lowdimfa.services.block.activations import Activation
from lowdimfa.services.block.handover import Line


class Message(NamedTuple):
    """What waits for its acknowledgement.

    Attributes
    ----------
    sequence
        Position in the stream.
    payload
        Bytes of its tensors.
    frames
        All of it; or, if it lies in shared memory, the one frame that says so.
    shared
        In that case, what returns the activation that lies there.
    """

    sequence: int
    payload: int
    frames: list[bytes]
    shared: Callable[[], Activation] | None = None


_LONGEST = 2**31 - 1
"""Milliseconds that the system waits at once."""


class Alarm:
    """Wakes a sender that waits for room: for what comes by a socket it waits itself, and no other thread for it."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._alone, self._both = select.poll(), select.poll()  # the latter with the socket
        for poll in (self._alone, self._both):
            poll.register(self._reading, select.POLLIN)
        self._line: Line | None = None
        self._waiting = threading.Lock()  # no descriptor is closed, and its number given away, under a wait
        self._is_open = True

    def follow(self, line: Line | None) -> None:
        """Wait for a socket from now on, in place of the one before, which is closed."""
        self.wake()
        with self._waiting:
            before, self._line = self._line, line
            if before is not None:
                self._both.unregister(before)
                before.close()
            if line is not None:
                self._both.register(line, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """Wait for something to take from the socket, or for `wake`."""
        with self._waiting:
            if not self._is_open:
                return
            poll = self._both if self._line is not None and not self._line.ended else self._alone
            if any(descriptor == self._reading for descriptor, _ in poll.poll(min(1000 * seconds, _LONGEST))):
                os.read(self._reading, select.PIPE_BUF)

    def wake(self) -> None:
        """End the present `wait`, or the next one."""
        if self._is_open:
            with suppress(BlockingIOError):  # it is full, which ends a wait as well
                os.write(self._writing, b"w")

    def close(self) -> None:
        """Let go of everything; nobody waits from now on."""
        self.follow(None)
        with self._waiting:
            if self._is_open:
                self._is_open = False
                os.close(self._reading)
                os.close(self._writing)


class Window:
    """Messages in order of their sequences, without gaps. Whoever calls a method has the sender's lock.

    Parameters
    ----------
    size
        Most messages that are to be in it.

    Attributes
    ----------
    alarm
        What to wait at for room, however acknowledgements come.
    next_sequence
        Of the next message.
    line
        The socket by which a receiver on this host acknowledges, if there is one.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.alarm = Alarm()
        self.next_sequence = 0
        self.line: Line | None = None
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        """Return how many messages were not acknowledged, as far as that is known."""
        if self.line is not None:
            self.acknowledge(self.line.take())
        return len(self._messages)

    def follow(self, line: Line | None) -> None:
        """Take acknowledgements from a socket, in place of the one before, in which nothing is left."""
        len(self)
        self.line = line
        self.alarm.follow(line)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    def add(self, message: Message) -> None:
        """Add the next message."""
        self._messages.append(message)
        self.next_sequence = message.sequence + 1

    def acknowledge(self, sequence: int) -> None:
        """Forget everything up to a sequence."""
        while self._messages and self._messages[0].sequence <= sequence:
            self._messages.popleft()

    def has(self, position: int) -> bool:
        """Return whether there is a message from a position on."""
        return bool(self._messages) and self._messages[-1].sequence >= position

    def first(self, position: int) -> Message:
        """Return the first message from a position on, if it `has` one."""
        return self._messages[max(0, position - self._messages[0].sequence)]
