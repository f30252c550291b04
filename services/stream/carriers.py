"""What a carrier is: the way of activations' tensors from block to block beside, or as here within, their stream.

The stream says that a message is there, what it is and where it belongs; it repeats, acknowledges and bounds messages,
and notices who is lost. A carrier only moves tensors. Each is a class of its own, in a file of its own, and a line in
the registry `lowdimfa.services.spec.carriers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, Protocol

import torch

from lowdimfa.errors import HandshakeError
from lowdimfa.services.rpc.connection import Peer
from lowdimfa.services.spec.carriers import CARRIERS
from lowdimfa.services.stream.frames import Assembly, Message, split
from lowdimfa.services.stream.limits import SampleLimit
from lowdimfa.services.stream.resumable import Sent, nothing_carried

Metadata = tuple[tuple[str, str], ...]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Here:
    """What a carrier needs to know of the block that it belongs to.

    Attributes
    ----------
    block
        Index of the block.
    host
        Address of this machine as its neighbours reach it.
    device
        Where the block's tensors are.
    liveness
        Seconds of silence after which a neighbour counts as lost.
    insecure
        Whether tensors may travel between machines neither encrypted nor authenticated.
    """

    block: int
    host: str
    liveness: float
    device: torch.device = _CPU
    insecure: bool = False


class Bypass(Protocol):
    """A way beside a connection, by which messages are announced and acknowledged in its place."""

    ended: bool
    """Whether the other end has let go, as far as `take` has seen."""

    def fileno(self) -> int:
        """Return where to wait for something to `take`."""

    def announce(self, sequence: int) -> None:
        """Say that all messages up to one are there."""

    def take(self) -> int:
        """Return the highest sequence that was acknowledged since the last call, or -1."""

    def close(self) -> None:
        """Let go of this end."""


class Upstream:
    """The sending end of a carrier, for one stream. This one has the stream carry the bytes.

    Attributes
    ----------
    offer
        Metadata of each connection, by which the other end learns of the carrier.
    """

    offer: Metadata = ()

    def start(self) -> None:
        """Meet the other end, which hears of the offer about now."""

    def pack(self, message: Message, run: int, block: int) -> Sent:
        """Take a message's tensors, which may be written again afterwards unless the carrier says otherwise.

        Parameters
        ----------
        message, run, block
            As for `split`.
        """
        payload = sum(tensor.nbytes for tensor in message.tensors)
        return Sent(message.sequence, payload, list(split(message, run, block)))

    def bypass(self, answer: Mapping[str, str | bytes]) -> Bypass | None:
        """Return the way beside a connection that the other end has answered with, if it has."""
        return None

    def refused(self, peer: Peer) -> HandshakeError | None:
        """Return why nothing can be sent if the other end doesn't take the offer, or None if bytes may be."""
        return None

    def close(self) -> None:
        """Let go of everything."""


class Intake:
    """What a carrier's receiving end has for one connection. This one has nothing: its bytes come by the stream.

    Attributes
    ----------
    answer
        Metadata for the sender.
    """

    answer: Metadata = ()

    def begin(self) -> None:
        """Meet the other end, in the thread that reads."""

    def accept(self) -> bool:
        """Return whether messages come beside the connection now that the sender has ended its half of it.

        Raises
        ------
        OSError
            What the sender has handed over for that can't be used.
        """
        return False

    def frames(self, first: int) -> Iterator[bytes]:
        """Yield the frames that come beside the connection, those of a message on."""
        yield from ()

    def carried(self, assembly: Assembly) -> Message | None:
        """Return a message whose tensors don't come by the stream.

        Raises
        ------
        ProtocolError
            There is none.
        """
        return nothing_carried(assembly)

    def acknowledge(self, sequence: int) -> bool:
        """Acknowledge beside the connection; return False if that can't be."""
        return False

    def stop(self) -> None:
        """End `frames` in whatever thread."""

    def close(self) -> None:
        """Let go of everything, after the last of `frames`."""


class Downstream:
    """The receiving end of a carrier, for one stream."""

    def take(self, metadata: Mapping[str, str | bytes]) -> Intake:
        """Return what is there for a new connection with some metadata."""
        return Intake()

    def decline(self) -> None:
        """Take no more offers: what came with one can't be used."""

    def close(self) -> None:
        """Let go of everything, and end all waits."""


class Carrier:
    """Moves the tensors of one block's activations. This one leaves them to their streams: gRPC.

    Parameters
    ----------
    here
        The block.

    Attributes
    ----------
    direct
        Whether tensors are taken from, and come to, the memory of the block's device.

    Raises
    ------
    InputError
        It can't be used here.
    """

    direct: ClassVar[bool] = False

    def __init__(self, here: Here) -> None:
        self.here = here

    def upstream(self, address: str, window: int, limit: SampleLimit) -> Upstream:
        """Return the sending end of a stream.

        Parameters
        ----------
        address
            Of the next block, ``host:port``.
        window, limit
            Most messages that are to be unacknowledged, and what they may be.

        Raises
        ------
        ResourceError
            There isn't what it takes.
        """
        return Upstream()

    def downstream(self, window: int, limit: SampleLimit) -> Downstream:
        """Return the receiving end of a stream; the parameters are those of `upstream`."""
        return Downstream()


def carrier_class(transport: str) -> type[Carrier]:
    """Return the carrier for a value of `placement.transport`."""
    module, _, name = CARRIERS[transport].path.partition(":")
    found: type[Carrier] = getattr(import_module(module), name)
    return found
