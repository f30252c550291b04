"""Shared memory between two blocks on one host: a ring of slots that the sender writes and the receiver reads.

The memory has no name in any file system: a socket hands it to the receiver (`handover`). So nothing is left behind
however a process ends, and ``/dev/shm`` may be small. Where that fails, as between hosts, there is no ring and the
connection carries the bytes. A slot has a message's frame, which says what it is, before its buffers; the first page has
the number of messages that have been announced.

A message has the slot of its sequence. With as many slots as the window has messages, a slot is written again only after
its last message was acknowledged. Each slot has its message's sequence, by which a slot that holds another message is
noticed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.rpc.tensors import encode
from lowdimfa.services.stream.carriers import Intake
from lowdimfa.services.stream.frames import Assembly, Message
from lowdimfa.services.stream.handover import Meeting

#: The metadata key of a sender's offer, and of the receiver's answer to it.
RING_KEY = "lowdimfa-ring"

_OFFER = re.compile(r"(\d{1,10}):(\d{1,18})", re.ASCII)

#: Bytes of the page that comes first, and of the number that it begins with.
PAGE, COUNT = mmap.PAGESIZE, 8

#: Bytes of a slot before its buffers, which so begin at a cache line. First are the message's sequence and the length
#: of its frame, of so many bytes, then the frame.
PREFIX, SEQUENCE, LENGTH = 1024, 8, 4

#: Of the memory: a reader of memory that is cut short would be ended by a signal, so it can't be.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform.startswith("linux") else 0


def slot_bytes(largest: int) -> int:
    """Return the size of a slot that holds messages of up to ``largest`` bytes: whole pages."""
    return -(-(PREFIX + largest) // PAGE) * PAGE


class Shape(NamedTuple):
    """Of a ring: how many slots, and the size of each in bytes."""

    slots: int
    size: int

    @property
    def nbytes(self) -> int:
        """Of the whole memory."""
        return PAGE + self.slots * self.size

    def slot(self, sequence: int) -> int:
        """Return where a message's slot begins."""
        return PAGE + sequence % self.slots * self.size

    def offer(self) -> str:
        """Return what a sender says of its ring."""
        return f"{self.slots}:{self.size}"


class Ring:
    """The sender's end.

    Parameters
    ----------
    slots
        Messages that it holds.
    largest
        Bytes of the largest message. A slot takes memory only as far as its message goes: that of an evaluation is many
        times as large as those of training.

    Attributes
    ----------
    shape
        For the receiver.

    Raises
    ------
    OSError
        The system has no such memory, or no more of it.
    """

    def __init__(self, slots: int, largest: int) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("memory without a name is shared on Linux only")
        self.shape = Shape(slots, slot_bytes(largest))
        self._ends = [0] * slots  # of each slot's message, in whole pages
        self._descriptor = os.memfd_create("lowdimfa-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, self.shape.nbytes)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
            self._memory = mmap.mmap(self._descriptor, 0)
            self._bytes = numpy.frombuffer(self._memory, numpy.uint8)
        except BaseException:
            os.close(self._descriptor)
            raise

    def fileno(self) -> int:
        """Return the descriptor of the memory, to hand it over."""
        return self._descriptor

    def write(self, sequence: int, frame: bytes, tensors: Sequence[Tensor]) -> None:
        """Copy a message into its slot, of which the last one must have been acknowledged.

        Parameters
        ----------
        sequence, frame, tensors
            Its position, what says what it is, and its buffers.

        Raises
        ------
        ProtocolError
            It is larger than the largest that was announced.
        """
        nbytes, room = sum(tensor.nbytes for tensor in tensors), self.shape.size - PREFIX
        if nbytes > room:
            raise ProtocolError(f"an activation of {nbytes} bytes, where at most {room} were announced")
        if SEQUENCE + LENGTH + len(frame) > PREFIX:
            raise ProtocolError(
                f"a frame of {len(frame)} bytes, which don't fit before an activation in its slot"
            )
        offset = self.shape.slot(sequence)
        self._give_back(sequence % self.shape.slots, offset, slot_bytes(nbytes))
        prefix = sequence.to_bytes(SEQUENCE, "little") + len(frame).to_bytes(LENGTH, "little") + frame
        self._memory[offset : offset + len(prefix)] = prefix
        offset += PREFIX
        for data in map(encode, tensors):
            self._bytes[offset : offset + len(data)] = data  # numpy lets other threads run meanwhile
            offset += len(data)

    def tensors(self, sequence: int, types: Sequence[tuple[torch.dtype, torch.Size]]) -> tuple[Tensor, ...]:
        """Return a message's tensors, given their types, as they are in its slot."""
        found, offset = [], self.shape.slot(sequence) + PREFIX
        for dtype, shape in types:
            there = self._bytes[offset : offset + shape.numel() * dtype.itemsize]
            found.append(torch.from_numpy(there).view(dtype).reshape(shape))
            offset += len(there)
        return tuple(found)

    def _give_back(self, slot: int, offset: int, end: int) -> None:
        """Give back what a slot's message leaves of the memory of the one before."""
        if end < self._ends[slot]:
            with suppress(OSError):  # then it stays
                self._memory.madvise(mmap.MADV_REMOVE, offset + end, self._ends[slot] - end)
        self._ends[slot] = end

    def announce(self, sequence: int) -> None:
        """Say that all messages up to one are there; whoever waits for that is to be told by other means."""
        self._memory[:COUNT] = (sequence + 1).to_bytes(COUNT, "little")

    def close(self) -> None:
        """Let go of the memory; a receiver that has it open keeps it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RingView(Intake):
    """The receiver's end of a ring, for one connection: read only, and within its bounds.

    Parameters
    ----------
    shape
        As the sender offered it.

    Attributes
    ----------
    answer
        Has the name of the socket over which the sender is to hand over the memory.

    Raises
    ------
    OSError
        The system has no such sockets.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._memory: mmap.mmap | None = None
        self._meeting = Meeting()
        self.answer = ((RING_KEY, self._meeting.name),)

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
            raise ProtocolError("it lies in shared memory, of which there is none")
        room, start = self._shape.size - PREFIX, self._shape.slot(sequence)
        if nbytes > room:
            raise ProtocolError(f"{nbytes} bytes in shared memory, where a slot has {room}")
        if (held := self._number(start, SEQUENCE)) != sequence:
            raise ProtocolError(f"a slot of shared memory holds activation {held}, not {sequence}")
        return self._bytes(start + PREFIX, nbytes)

    def carried(self, assembly: Assembly) -> Message | None:
        """Return a message whose tensors are copied from its slot."""
        return assembly.add(0, self.read(assembly.sequence, assembly.nbytes))

    def acknowledge(self, sequence: int) -> bool:
        """Tell the sender that all messages up to one were consumed; return whether it can hear of it here."""
        return self._meeting.acknowledge(sequence)

    def stop(self) -> None:
        """End `frames` in whatever thread."""
        self._meeting.stop()

    def close(self) -> None:
        """Let go of this end, after the last of `frames`."""
        self._meeting.close()

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
