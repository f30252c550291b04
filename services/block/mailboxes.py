"""The two boxes of a block's compute thread: what came for it, and what it has computed for others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.devices import Copies, OnHost
from lowdimfa.services.block.exchange import Shard
from lowdimfa.services.block.instructions import EndAt, Halt
from lowdimfa.services.rpc.connection import failure_of_thread
from lowdimfa.services.stream.frames import ErrorVector, Message


@dataclass(frozen=True)
class Abort:
    """Ends whatever the block waits for."""

    error: LowdimfaError


Arrived = Message | Shard | ErrorVector | EndAt | Halt | Abort
"""What the inbox takes."""


class Inbox:
    """Messages in order of arrival. It is bounded by the windows of the streams that fill it."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Arrived] = queue.SimpleQueue()

    def put(self, message: Arrived) -> None:
        """Add a message."""
        self._messages.put(message)

    def abort(self, error: LowdimfaError) -> None:
        """Make the compute thread raise an error at its next look into the inbox."""
        self._messages.put(Abort(error))

    def __len__(self) -> int:
        return self._messages.qsize()

    def take(self, timeout: float) -> Arrived | None:
        """Return the next message, or None after ``timeout`` seconds without one."""
        try:
            return self._messages.get(timeout=timeout) if timeout else self._messages.get_nowait()
        except queue.Empty:
            return None


Send = Callable[[tuple[Tensor, ...]], None]
"""Hands computed tensors to a connection."""


class Delivery(Protocol):
    """Hands what was computed to the connections, in order."""

    def put(self, computed: OnHost, send: Send) -> None:
        """Have tensors sent once they have arrived."""

    def settle(self, patience: float) -> bool:
        """Wait until everything put so far was sent or dropped; return False if it isn't after ``patience`` seconds."""

    def close(self) -> None:
        """End it."""


class AtOnce:
    """For a block on processors, whose tensors are there as soon as they are computed: sent by the caller itself."""

    def put(self, computed: OnHost, send: Send) -> None:
        """Send tensors."""
        send(computed.wait())

    def settle(self, patience: float) -> bool:
        """Return True: nothing waits."""
        return True

    def close(self) -> None:
        """There is nothing to end."""


class Outbox:
    """Waits, in a thread of its own, for what was computed, and hands it to the connections in the same order.

    Nothing leaves before the checks that came with it are passed. So no other block computes with a value that isn't
    finite, none answers it with an error, and it never reaches the weights.

    Parameters
    ----------
    name
        Of the block, for the thread.
    room
        Messages that may wait; whoever has more to send waits.
    on_failure
        Told once, in this object's thread, why nothing more is sent.
    """

    def __init__(self, name: str, room: int, on_failure: Callable[[LowdimfaError], None]) -> None:
        self._on_failure = on_failure
        self._room = threading.Semaphore(room)
        self._jobs: queue.SimpleQueue[Callable[[], None] | threading.Event | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-outbox", daemon=True)
        self._thread.start()

    def put(self, computed: OnHost, send: Send) -> None:
        """Have tensors sent once they have arrived; wait while the outbox is full."""
        self._room.acquire()
        self._jobs.put(partial(_wait_and_send, computed, send))

    def settle(self, patience: float) -> bool:
        """Wait until everything put so far was sent or dropped; return False if it isn't after ``patience`` seconds."""
        reached = threading.Event()
        self._jobs.put(reached)
        return reached.wait(patience)

    def close(self) -> None:
        """Let the thread end after what it has to send; connections that are closed make that soon."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            try:
                if not self._failed:
                    job()
            except Exception as error:
                self._failed = True
                self._on_failure(failure_of_thread(error))
            finally:
                self._room.release()


def _wait_and_send(computed: OnHost, send: Send) -> None:
    send(computed.wait())


def delivery_for(
    copies: Copies, name: str, room: int, on_failure: Callable[[LowdimfaError], None]
) -> Delivery:
    """Return what sends the tensors that ``copies`` brings; the other parameters are those of `Outbox`."""
    return Outbox(name, room, on_failure) if copies.deferred else AtOnce()
