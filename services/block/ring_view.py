"""The receiver's end of memory that another process shares: opened with care, and read within its bounds."""

from __future__ import annotations

import fcntl
import hmac
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterator

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.doorbell import Listener
from lowdimfa.services.block.ring import LENGTH, PAGE, PREFIX, SEALS, SEQUENCE, TOKEN, Place, slot_bytes
from lowdimfa.services.rpc.pipes import descriptor_path

_OFFER = re.compile(
    r"(\d{1,10}):(\d{1,10}):(\d{1,10}):(\d{1,18}):([0-9a-f]{32})" + 2 * r":(\d{1,10}):(\d{1,20})", re.ASCII
)


class RingView:
    """The memory: read only.

    Parameters
    ----------
    memory
        The whole of it.
    slots, size
        How many slots, and the size of each in bytes.
    listener
        Hears what is in it, and acknowledges.

    Attributes
    ----------
    acknowledge, stop
        Those of the listener.
    """

    def __init__(self, memory: mmap.mmap, slots: int, size: int, listener: Listener) -> None:
        self._memory, self._slots, self._size = memory, slots, size
        self._listener = listener
        self.acknowledge, self.stop = listener.acknowledge, listener.stop

    def frames(self) -> Iterator[bytes]:
        """Yield the frame of each message that is announced, until `stop` or the sender's end."""
        for sequence in self._listener.sequences():
            slot = PAGE + sequence % self._slots * self._size
            start = slot + SEQUENCE + LENGTH
            length = int.from_bytes(self._memory[start - LENGTH : start], "little")
            yield self._memory[start : min(start + length, slot + PREFIX)]

    def read(self, sequence: int, place: Place) -> memoryview:
        """Return a message's buffers, which are to be copied before the message is acknowledged.

        Raises
        ------
        ProtocolError
            There is no such slot, it is too small, or it holds another message.
        """
        if place.slot >= self._slots or place.nbytes > self._size - PREFIX:
            raise ProtocolError(
                f"{place.nbytes} bytes in slot {place.slot} of shared memory; there are {self._slots} slots of "
                f"{self._size - PREFIX} bytes"
            )
        start = PAGE + place.slot * self._size + PREFIX
        if (
            held := int.from_bytes(self._memory[start - PREFIX : start - PREFIX + SEQUENCE], "little")
        ) != sequence:
            raise ProtocolError(f"slot {place.slot} of shared memory holds activation {held}, not {sequence}")
        return memoryview(self._memory)[start : start + place.nbytes]

    def close(self) -> None:
        """Let go of the pipes, after `frames`; the memory goes with the last buffer that is read."""
        self._listener.close()


def open_ring(offer: str, slots: int, largest: int) -> RingView | None:
    """Open a sender's ring, or return None where that can't be done: on another host, above all.

    Parameters
    ----------
    offer
        What the sender says.
    slots, largest
        The most messages, and bytes in one, that this end expects; a ring for more is none.
    """
    found = _OFFER.fullmatch(offer)
    if found is None or not sys.platform.startswith("linux"):
        return None
    process, descriptor, offered, size = map(int, found.groups()[:4])
    bell, receipts = (int(found[6]), int(found[7])), (int(found[8]), int(found[9]))
    path = descriptor_path(process, descriptor)
    if not 1 <= offered <= slots or not PAGE <= size <= slot_bytes(largest) or size % PAGE:
        return None
    try:
        # On another host the numbers may be those of any process and of any file, whose opening might do something.
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        memory = _checked(opened, offered, size, bytes.fromhex(found[5]))
        return None if memory is None else RingView(memory, offered, size, Listener(process, bell, receipts))
    except (OSError, ValueError):
        return None
    finally:
        os.close(opened)


def _checked(opened: int, slots: int, size: int, token: bytes) -> mmap.mmap | None:
    """Return the memory behind a descriptor if it is what was offered, of this user, and can't be cut short."""
    status, whole = os.fstat(opened), PAGE + slots * size
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == whole
    if not ours or fcntl.fcntl(opened, fcntl.F_GET_SEALS) & SEALS != SEALS:
        return None
    memory = mmap.mmap(opened, whole, prot=mmap.PROT_READ)
    return memory if hmac.compare_digest(memory[:TOKEN], token) else None
