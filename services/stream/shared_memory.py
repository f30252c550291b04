"""Activations through memory that two blocks on one host share: the carriers ``shared_memory`` and ``auto``.

The memory is a `ring`, handed over by the socket of `handover`. Nothing then travels on the connection itself, which
stays open: that a neighbour has gone, and that messages are to be repeated, is seen there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial

import torch

from lowdimfa.errors import HandshakeError, ProtocolError, ResourceError
from lowdimfa.services.rpc.connection import Peer
from lowdimfa.services.stream.carriers import Bypass, Carrier, Downstream, Intake, Upstream
from lowdimfa.services.stream.frames import Message, split, without_data
from lowdimfa.services.stream.handover import Line
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.resumable import Sent
from lowdimfa.services.stream.ring import RING_KEY, Ring, take_offer

_log = logging.getLogger(__name__)


class RingLine(Line):
    """The sender's way to a receiver that has its memory."""

    def __init__(self, name: str, ring: Ring) -> None:
        super().__init__(name, ring.fileno())
        self._ring = ring

    def announce(self, sequence: int) -> None:
        """Say that all messages up to one are in the memory."""
        self._ring.announce(sequence)
        self.ring()


class RingUpstream(Upstream):
    """The sending end.

    Parameters
    ----------
    ring
        With a slot for each message of the window. It is this object's to close.
    only
        Give up if the other end can't have the memory. Otherwise the stream then carries the bytes.
    """

    def __init__(self, ring: Ring, only: bool = False) -> None:
        self._ring, self._only = ring, only
        self.offer = ((RING_KEY, ring.shape.offer()),)

    def pack(self, message: Message, run: int, block: int) -> Sent:
        """Copy a message's tensors to its slot."""
        types = [(tensor.dtype, tensor.shape) for tensor in message.tensors]
        frame = without_data(message, run, block)
        try:
            self._ring.write(message.sequence, frame, message.tensors)
        except ProtocolError as error:
            shapes = " and ".join(str(list(shape)) for _, shape in types)
            raise ProtocolError(
                f"block {block}, {message.ticket}, tensors of shape {shapes}: {error.message}; what goes from block to "
                "block keeps the shapes that it had when the network was cut",
                block=block,
                step=message.ticket.step,
            ) from error
        payload = sum(tensor.nbytes for tensor in message.tensors)
        plain = partial(self._plain, message._replace(tensors=()), types, run, block)
        return Sent(message.sequence, payload, [frame], plain)

    def _plain(
        self, message: Message, types: list[tuple[torch.dtype, torch.Size]], run: int, block: int
    ) -> Iterator[bytes]:
        """Return the frames of a message that lies in the ring, for a receiver that can't have it."""
        tensors = self._ring.tensors(message.sequence, types)
        return split(message._replace(tensors=tensors), run, block)

    def bypass(self, answer: Mapping[str, str | bytes]) -> Bypass | None:
        """Return a connection to who takes the ring, or None where there is none: on another host, above all."""
        name = answer.get(RING_KEY)
        with suppress(OSError):
            return RingLine(name, self._ring) if isinstance(name, str) else None
        return None

    def refused(self, peer: Peer) -> HandshakeError | None:
        """Return why nothing can be sent, if only shared memory will do."""
        if not self._only:
            return None
        return HandshakeError(
            f"{peer.name} at {peer.address} can't open the shared memory of block {peer.block}: they are on different "
            "hosts, in containers with networks of their own, or of different users",
            block=peer.block,
            setting="placement.transport",
        )

    def close(self) -> None:
        """Let go of the memory; a receiver that has it keeps it."""
        self._ring.close()


class RingDownstream(Downstream):
    """The receiving end; its parameters are those of `Carrier.downstream`."""

    def __init__(self, window: int, limit: SampleLimit) -> None:
        self._window, self._limit = window, limit
        self._declines = False

    def take(self, metadata: Mapping[str, str | bytes]) -> Intake:
        """Return this end of the memory that the sender offers to share, if it does and if that can be done."""
        offer = None if self._declines else metadata.get(RING_KEY)
        return take_offer(offer, self._window, self._limit.nbytes) or Intake()

    def decline(self) -> None:
        """Take no more offers."""
        self._declines = True


class SharedMemory(Carrier):
    """Shares memory with a block at any address, and gives up where that can't be done."""

    only = True

    def upstream(self, address: str, window: int, limit: SampleLimit) -> Upstream:
        """Return the sending end, with memory of its own."""
        try:
            return RingUpstream(Ring(window, limit.nbytes), self.only)
        except (OSError, OverflowError) as error:  # the second is for more than can be addressed
            return self._without(error)

    def _without(self, error: Exception) -> Upstream:
        block = self.here.block
        raise ResourceError(
            f"block {block} can't make memory to share with the next one: {error}",
            block=block,
            setting="placement.transport",
        ) from error

    def downstream(self, window: int, limit: SampleLimit) -> Downstream:
        """Return the receiving end."""
        return RingDownstream(window, limit)


class SharedMemoryOnThisHost(SharedMemory):
    """Shares memory with blocks at this host's own address, and leaves bytes to the stream where that can't be done."""

    only = False

    def upstream(self, address: str, window: int, limit: SampleLimit) -> Upstream:
        """Return the sending end, with memory for a block on this host."""
        own = address.rpartition(":")[0].strip("[]") == self.here.host
        return super().upstream(address, window, limit) if own else Upstream()

    def _without(self, error: Exception) -> Upstream:
        block = self.here.block
        _log.warning("block %d sends bytes over its connection: no memory to share: %s", block, error)
        return Upstream()
