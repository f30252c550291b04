"""What a sender of activations keeps until it is acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lowdimfa.services.block.activations import Activation
from lowdimfa.services.block.doorbell import Receipts


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


class Window:
    """Messages in order of their sequences, without gaps. Whoever calls a method has the sender's lock.

    Parameters
    ----------
    size
        Most messages that are to be in it.
    shared
        Whether there is shared memory, so that acknowledgements may come beside it.

    Attributes
    ----------
    receipts
        Acknowledgements that came by shared memory; and what to wait at for room, however acknowledgements come.
    next_sequence
        Of the next message.
    """

    def __init__(self, size: int, *, shared: bool) -> None:
        self.size = size
        self.receipts = Receipts(size if shared else 0)
        self.next_sequence = 0
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        """Return how many messages were not acknowledged, as far as that is known."""
        self.acknowledge(self.receipts.take())
        return len(self._messages)

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
