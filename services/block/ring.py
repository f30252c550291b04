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
import hmac
import mmap
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from services.block.doorbell import Doorbell, Listener, Receipts, descriptor_path
from services.rpc.tensors import encode

#: The metadata key of a sender's offer, and of the receiver's answer to it.
RING_KEY = "lowdimfa-ring"
ACCEPTED = "accepted"

_PREFIX = 512  # a slot's bytes before its buffers, which so begin at a cache line
_SEQUENCE, _LENGTH = (
    8,
    4,
)  # what a slot begins with: the message's sequence, the length of its frame, the frame
_FRAME = _SEQUENCE + _LENGTH
_TOKEN_BYTES = 16
_PAGE = mmap.PAGESIZE
_OFFER = re.compile(
    r"(\d{1,10}):(\d{1,10}):(\d{1,10}):(\d{1,18}):([0-9a-f]{32})" + 2 * r":(\d{1,10}):(\d{1,20})", re.ASCII
)


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
    return -(-(_PREFIX + largest) // _PAGE) * _PAGE


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
        Doorbell(slots).close()  # whether there is one for so many messages
        self._slots, self._size = slots, slot_bytes(largest)
        self._descriptor = os.memfd_create("lowdimfa-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, _PAGE + slots * self._size)
            # A reader of memory that is cut short would be ended by a signal: so it can't be.
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self._descriptor, 0)
            self._bytes = numpy.frombuffer(self._memory, numpy.uint8)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._memory[:_TOKEN_BYTES] = self._token

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
        if nbytes > self._size - _PREFIX:
            raise ProtocolError(
                f"an activation of {nbytes} bytes, where at most {self._size - _PREFIX} were announced"
            )
        offset = _PAGE + slot * self._size
        self._memory[offset : offset + _SEQUENCE] = sequence.to_bytes(_SEQUENCE, "little")
        offset += _PREFIX
        for data in map(encode, tensors):
            self._bytes[offset : offset + len(data)] = data  # numpy lets other threads run meanwhile
            offset += len(data)
        return Place(slot, nbytes)

    def tensors(self, place: Place, types: Sequence[tuple[torch.dtype, torch.Size]]) -> tuple[Tensor, ...]:
        """Return a message's tensors, given their types, as they are in its slot."""
        found, offset = [], _PAGE + place.slot * self._size + _PREFIX
        for dtype, shape in types:
            there = self._bytes[offset : offset + shape.numel() * dtype.itemsize]
            found.append(torch.from_numpy(there).view(dtype).reshape(shape))
            offset += len(there)
        return tuple(found)

    def label(self, place: Place, frame: bytes) -> None:
        """Write the frame that belongs to the buffers of a message."""
        start = _PAGE + place.slot * self._size + _SEQUENCE
        labelled = len(frame).to_bytes(_LENGTH, "little") + frame
        self._memory[start : start + len(labelled)] = labelled

    def close(self) -> None:
        """Let go of the memory; a receiver that has it open keeps it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RingView:
    """The receiver's end: read only.

    Parameters
    ----------
    memory
        The whole of it.
    slots, size
        How many slots, and the size of each in bytes.
    listener
        Hears what is in it.
    """

    def __init__(self, memory: mmap.mmap, slots: int, size: int, listener: Listener) -> None:
        self._memory, self._slots, self._size = memory, slots, size
        self._listener = listener
        self.acknowledge, self.stop = listener.acknowledge, listener.stop

    def frames(self) -> Iterator[bytes]:
        """Yield the frame of each message that is announced, until `stop` or the sender's end."""
        for sequence in self._listener.sequences():
            start = _PAGE + sequence % self._slots * self._size + _FRAME
            length = int.from_bytes(self._memory[start - _LENGTH : start], "little")
            yield self._memory[start : start + min(length, _PREFIX - _FRAME)]

    def read(self, sequence: int, place: Place) -> memoryview:
        """Return a message's buffers, which are to be copied before the message is acknowledged.

        Raises
        ------
        ProtocolError
            There is no such slot, it is too small, or it holds another message.
        """
        if place.slot >= self._slots or place.nbytes > self._size - _PREFIX:
            raise ProtocolError(
                f"{place.nbytes} bytes in slot {place.slot} of shared memory; there are {self._slots} slots of "
                f"{self._size - _PREFIX} bytes"
            )
        start = _PAGE + place.slot * self._size + _PREFIX
        if (
            held := int.from_bytes(self._memory[start - _PREFIX : start - _PREFIX + _SEQUENCE], "little")
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
    if not 1 <= offered <= slots or not _PAGE <= size <= slot_bytes(largest) or size % _PAGE:
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
    status, whole = os.fstat(opened), _PAGE + slots * size
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == whole
    if not ours or fcntl.fcntl(opened, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        return None
    memory = mmap.mmap(opened, whole, prot=mmap.PROT_READ)
    return memory if hmac.compare_digest(memory[:_TOKEN_BYTES], token) else None


_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform.startswith("linux") else 0
)
