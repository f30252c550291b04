"""Shared memory between two blocks on one host: a ring of slots that the sender writes and the receiver reads.

The memory has no name in any file system: the sender keeps it open, and the receiver opens the sender's own descriptor
below ``/proc``. So nothing is left behind however a process ends, and ``/dev/shm`` may be small. Where that fails, as
between hosts or containers, there is no ring and the connection carries the bytes.

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from services.rpc.tensors import encode

#: The metadata key of a sender's offer, and of the receiver's answer to it.
RING_KEY = "lowdimfa-ring"
ACCEPTED = "accepted"

SMALLEST = 4096
"""Messages with fewer bytes take less time through the connection than through a slot."""

_PREFIX = 64  # a slot's bytes before its buffers, which so begin at a cache line
_TOKEN_BYTES = 16
_PAGE = mmap.PAGESIZE
_OFFER = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10}):(\d{1,18}):([0-9a-f]{32})", re.ASCII)


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
        self._slots, self._size = slots, slot_bytes(largest)
        self._descriptor = os.memfd_create("lowdimfa-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, _PAGE + slots * self._size)
            # A reader of memory that is cut short would be ended by a signal: so it can't be.
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self._descriptor, 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._memory[:_TOKEN_BYTES] = self._token

    @property
    def offer(self) -> str:
        """What the receiver needs to open the ring."""
        return f"{os.getpid()}:{self._descriptor}:{self._slots}:{self._size}:{self._token.hex()}"

    def holds(self, nbytes: int) -> bool:
        """Return whether a message is to go this way: neither too small nor too large."""
        return SMALLEST <= nbytes <= self._size - _PREFIX

    def write(self, sequence: int, tensors: Sequence[Tensor]) -> tuple[Place, tuple[Tensor, ...]]:
        """Copy a message into its slot; return where it is, and the tensors as they are there.

        The slot's last message must have been acknowledged.
        """
        slot = sequence % self._slots
        offset = start = _PAGE + slot * self._size + _PREFIX
        self._memory[start - _PREFIX : start - _PREFIX + 8] = sequence.to_bytes(8, "little")
        kept = []
        for tensor in tensors:
            data = encode(tensor)
            there = torch.frombuffer(self._memory, dtype=torch.uint8, count=len(data), offset=offset)
            there.numpy()[:] = numpy.frombuffer(data, numpy.uint8)  # numpy lets other threads run meanwhile
            kept.append(there.view(tensor.dtype).reshape(tensor.shape))
            offset += len(data)
        return Place(slot, offset - start), tuple(kept)

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
    """

    def __init__(self, memory: mmap.mmap, slots: int, size: int) -> None:
        self._memory, self._slots, self._size = memory, slots, size

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
            held := int.from_bytes(self._memory[start - _PREFIX : start - _PREFIX + 8], "little")
        ) != sequence:
            raise ProtocolError(f"slot {place.slot} of shared memory holds activation {held}, not {sequence}")
        return memoryview(self._memory)[start : start + place.nbytes]


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
    path = f"/proc/{process}/fd/{descriptor}"
    if not 1 <= offered <= slots or not _PAGE <= size <= slot_bytes(largest) or size % _PAGE:
        return None
    try:
        # On another host the numbers may be those of any process and of any file, whose opening might do something.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return None
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _checked(opened, offered, size, bytes.fromhex(found[5]))
    except (OSError, ValueError):
        return None
    finally:
        os.close(opened)


def _checked(opened: int, slots: int, size: int, token: bytes) -> RingView | None:
    """Return the ring behind a descriptor if it is the one that was offered, of this user, and can't be cut short."""
    status, whole = os.fstat(opened), _PAGE + slots * size
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == whole
    if not ours or fcntl.fcntl(opened, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        return None
    memory = mmap.mmap(opened, whole, prot=mmap.PROT_READ)
    return RingView(memory, slots, size) if hmac.compare_digest(memory[:_TOKEN_BYTES], token) else None


_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform.startswith("linux") else 0
)
