"""Shared memory between two blocks on one host: a ring of slots that the sender writes and the receiver reads.

The memory has no name in any file system: the sender keeps it open, and the receiver opens the sender's own descriptor
below ``/proc``. So nothing is left behind however a process ends, and ``/dev/shm`` may be small. Where that fails, as
between hosts or containers, there is no ring and the connection carries the bytes. A slot has a message's frame, which
says what it is, before its buffers; a `Doorbell` says that it is there.

A message has the slot of its sequence. With as many slots as the window has messages, a slot is written again only after
its last message was acknowledged. Memory doesn't garble what it holds, so there is no checksum: it would cost as much as
the copy. Each slot has its message's sequence, by which a slot that holds another message is noticed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.doorbell import Doorbell, Receipts
from lowdimfa.services.rpc.tensors import encode

#: The metadata key of a sender's offer, and of the receiver's answer to it.
RING_KEY = "lowdimfa-ring"
ACCEPTED = "accepted"

#: Bytes of the page that comes first, and of the token that it begins with.
PAGE, TOKEN = mmap.PAGESIZE, 16

#: Bytes of a slot before its buffers, which so begin at a cache line. First are the message's sequence and the length
#: of its frame, of so many bytes, then the frame.
PREFIX, SEQUENCE, LENGTH = 512, 8, 4

#: Of the memory: a reader of memory that is cut short would be ended by a signal, so it can't be.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform.startswith("linux") else 0


class Place(NamedTuple):
    """Where in a ring a message is: its slot, and the bytes of its buffers."""

    slot: int
    nbytes: int

    def serialised(self) -> bytes:
        """Return what a frame carries in place of the buffers."""
        return self.slot.to_bytes(8, "little") + self.nbytes.to_bytes(8, "little")

    @classmethod
    def parse(cls, data: memoryview) -> Place:
        """Return the place that a frame names.

        Raises
        ------
        ProtocolError
            It is malformed.
        """
        if len(data) != 16:
            raise ProtocolError(f"a place in shared memory of {len(data)} bytes; 16 were expected")
        return cls(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little"))


def slot_bytes(largest: int) -> int:
    """Return the size of a slot that holds messages of up to ``largest`` bytes: whole pages."""
    return -(-(PREFIX + largest) // PAGE) * PAGE


class Ring:
    """The sender's end.

    Parameters
    ----------
    slots
        Messages that it holds.
    largest
        Bytes of the largest message. A slot takes memory only as far as it is written.

    Raises
    ------
    OSError
        The system has no such memory, or no more of it.
    """

    def __init__(self, slots: int, largest: int) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("memory without a name is shared on Linux only")
        self._slots, self._size = slots, slot_bytes(largest)
        self.doorbell().close()  # whether there is one for so many messages
        self._descriptor = os.memfd_create("lowdimfa-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, PAGE + slots * self._size)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
            self._memory = mmap.mmap(self._descriptor, 0)
            self._bytes = numpy.frombuffer(self._memory, numpy.uint8)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._token = secrets.token_bytes(TOKEN)
        self._memory[:TOKEN] = self._token

    def doorbell(self) -> Doorbell:
        """Return a doorbell for one connection.

        Raises
        ------
        OSError
            The system has none.
        """
        return Doorbell(self._slots)

    def offer(self, bell: Doorbell, receipts: Receipts) -> str:
        """Return what the receiver needs to open the ring, to hear of its messages and to acknowledge them."""
        memory = os.getpid(), self._descriptor, self._slots, self._size, self._token.hex()
        return ":".join(map(str, (*memory, *bell.place, *receipts.place)))

    def write(self, sequence: int, tensors: Sequence[Tensor]) -> Place:
        """Copy a message into its slot, and return where it is.

        The slot's last message must have been acknowledged.

        Raises
        ------
        ProtocolError
            It is larger than the largest that was announced.
        """
        slot, nbytes = sequence % self._slots, sum(tensor.nbytes for tensor in tensors)
        if nbytes > self._size - PREFIX:
            raise ProtocolError(
                f"an activation of {nbytes} bytes, where at most {self._size - PREFIX} were announced"
            )
        offset = PAGE + slot * self._size
        self._memory[offset : offset + SEQUENCE] = sequence.to_bytes(SEQUENCE, "little")
        offset += PREFIX
        for data in map(encode, tensors):
            self._bytes[offset : offset + len(data)] = data  # numpy lets other threads run meanwhile
            offset += len(data)
        return Place(slot, nbytes)

    def tensors(self, place: Place, types: Sequence[tuple[torch.dtype, torch.Size]]) -> tuple[Tensor, ...]:
        """Return a message's tensors, given their types, as they are in its slot."""
        found, offset = [], PAGE + place.slot * self._size + PREFIX
        for dtype, shape in types:
            there = self._bytes[offset : offset + shape.numel() * dtype.itemsize]
            found.append(torch.from_numpy(there).view(dtype).reshape(shape))
            offset += len(there)
        return tuple(found)

    def label(self, place: Place, frame: bytes) -> None:
        """Write the frame that belongs to the buffers of a message."""
        start = PAGE + place.slot * self._size + SEQUENCE
        labelled = len(frame).to_bytes(LENGTH, "little") + frame
        self._memory[start : start + len(labelled)] = labelled

    def close(self) -> None:
        """Let go of the memory; a receiver that has it open keeps it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
