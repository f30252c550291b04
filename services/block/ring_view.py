"""The receiver's end of memory that another process shares: taken with care, and read within its bounds."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.handover import Meeting
from lowdimfa.services.block.ring import (
    COUNT,
    LENGTH,
    PAGE,
    PREFIX,
    SEALS,
    SEQUENCE,
    Shape,
    slot_bytes,
)

NO_MEMORY = "it lies in shared memory, of which there is none"

_OFFER = re.compile(r"(\d{1,10}):(\d{1,18})", re.ASCII)


class RingView:
    """The receiver's end of a ring, for one connection: read only, and within its bounds.

    Parameters
    ----------
    shape
        As the sender offered it.

    Attributes
    ----------
    name
        Of the socket over which the sender is to hand over the memory.
    acknowledge, stop, close
        Those of the socket.

    Raises
    ------
    OSError
        The system has no such sockets.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._memory: mmap.mmap | None = None
        self._meeting = Meeting()
        self.name = self._meeting.name
        self.acknowledge, self.stop = self._meeting.acknowledge, self._meeting.stop
        self.close = self._meeting.close

    def accept(self) -> bool:
        """Take the memory that a sender has handed over; return whether one has.

        Raises
        ------
        OSError
            It is not what was offered, or could be cut short.
        """
        descriptor = self._meeting.accept()
        if descriptor is None:
            return False
        try:
            status, whole = os.fstat(descriptor), self._shape.nbytes
            if not stat.S_ISREG(status.st_mode) or status.st_size != whole:
                raise OSError(f"memory of {status.st_size} bytes where {whole} were offered")
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
                raise OSError("memory that could be cut short")
            self._memory = mmap.mmap(descriptor, whole, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return True

    def frames(self, first: int) -> Iterator[bytes]:
        """Yield the frame of each message from one on as it is announced, until `stop` or the sender's end."""
        while self._meeting.wait():
            for sequence in range(first, self._number(0, COUNT)):
                yield self._frame(sequence)
                first = sequence + 1

    def read(self, sequence: int, nbytes: int) -> memoryview:
        """Return a message's buffers, which are to be copied before the message is acknowledged.

        Raises
        ------
        ProtocolError
            There is no memory, its slots are too small, or that of the message holds another one.
        """
        if self._memory is None:
            raise ProtocolError(NO_MEMORY)
        room, start = self._shape.size - PREFIX, self._shape.slot(sequence)
        if nbytes > room:
            raise ProtocolError(f"{nbytes} bytes in shared memory, where a slot has {room}")
        if (held := self._number(start, SEQUENCE)) != sequence:
            raise ProtocolError(f"a slot of shared memory holds activation {held}, not {sequence}")
        return self._bytes(start + PREFIX, nbytes)

    def _frame(self, sequence: int) -> bytes:
        slot = self._shape.slot(sequence)
        length = min(self._number(slot + SEQUENCE, LENGTH), PREFIX - SEQUENCE - LENGTH)
        return bytes(self._bytes(slot + SEQUENCE + LENGTH, length))

    def _number(self, start: int, length: int) -> int:
        return int.from_bytes(self._bytes(start, length), "little")

    def _bytes(self, start: int, length: int) -> memoryview:
        assert self._memory is not None, "accepted before"
        return memoryview(self._memory)[start : start + length]


def take_offer(offer: object, slots: int, largest: int) -> RingView | None:
    """Return this end of a ring that a sender offers, or None where it can't be used.

    Parameters
    ----------
    offer
        What the sender says, if anything.
    slots, largest
        The most messages, and bytes in one, that this end expects; a ring for more is of no use.
    """
    found = _OFFER.fullmatch(offer) if isinstance(offer, str) else None
    if found is None:
        return None
    shape = Shape(int(found[1]), int(found[2]))
    fits = 1 <= shape.slots <= slots and PAGE <= shape.size <= slot_bytes(largest) and shape.size % PAGE == 0
    with suppress(OSError):
        return RingView(shape) if fits else None
    return None
