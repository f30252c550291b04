"""The inbox of a block's compute thread, which any thread may write to."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.activations import Activation
from lowdimfa.services.block.exchange import Shard
from lowdimfa.services.block.instructions import EndAt, Halt
from lowdimfa.services.broadcast.subscriber import ErrorVector


@dataclass(frozen=True)
class Abort:
    """Ends whatever the block waits for."""

    error: LowdimfaError


Message = Activation | Shard | ErrorVector | EndAt | Halt | Abort


class Inbox:
    """Messages in order of arrival. It is bounded by the windows of the streams that fill it."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        """Add a message."""
        self._messages.put(message)

    def abort(self, error: LowdimfaError) -> None:
        """Make the compute thread raise an error at its next look into the inbox."""
        self._messages.put(Abort(error))

    def __len__(self) -> int:
        return self._messages.qsize()

    def take(self, timeout: float) -> Message | None:
        """Return the next message, or None after ``timeout`` seconds without one."""
        try:
            return self._messages.get(timeout=timeout) if timeout else self._messages.get_nowait()
        except queue.Empty:
            return None
