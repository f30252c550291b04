"""The upstream end of the gRPC transport of activations."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

from lowdimfa.errors import HandshakeError, LowdimfaError, PeerError, ProtocolError
from lowdimfa.services.block.activations import (
    METHOD,
    SENDER_KEY,
    SERVICE,
    Activation,
    Kind,
    split,
    without_data,
)
from lowdimfa.services.block.handover import Line
from lowdimfa.services.block.ring import RING_KEY, Ring
from lowdimfa.services.block.window import Message, Window
from lowdimfa.services.rpc.connection import Peer, StreamThread
from lowdimfa.services.rpc.protocol import Traffic, run_fingerprint
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.rpc.v1 import activations_pb2 as pb
from lowdimfa.tickets import Ticket

_ASKED = 4
"""Times that a receiver is asked to open the memory: one that ends a connection just then refuses it too."""


class ActivationSender:
    """Sends activations to the next block, each once and in order, over a connection that may break.

    Parameters
    ----------
    address, security
        Where the next block listens, and the secrets of the run.
    run, block, peer
        Identifier of the run, index of this block and of the next one.
    window
        Activations that may be unacknowledged at once.
    liveness
        Seconds without connection, or with a full window, after which the next block counts as lost.
    on_failure
        Told once, in a thread of this object, why nothing more can be sent. `send` raises the same error.
    rank
        Of this replica of its block.
    name
        Of the next block, in messages, where it is not simply ``block <peer>``.
    ring
        Shared memory with a slot for each message of the window, or None. It is this object's to close.
    ring_only
        Give up if the next block can't open the ring. Otherwise the connection then carries the bytes.

    Attributes
    ----------
    traffic
        What was sent, including what was sent again after a broken connection.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        run: str,
        block: int,
        peer: int,
        window: int,
        liveness: float,
        on_failure: Callable[[LowdimfaError], None],
        *,
        rank: int = 0,
        name: str | None = None,
        ring: Ring | None = None,
        ring_only: bool = False,
    ) -> None:
        self.traffic = Traffic()
        self._run = run_fingerprint(run)
        self._block = block
        self._on_failure = on_failure
        self._peer = Peer(block, name or f"block {peer}", address, liveness)
        self._metadata = (*security.metadata, (SENDER_KEY, str(Seat(block, rank))))
        self._ring, self._ring_only = ring, ring_only
        self._channel = security.channel(address, liveness)
        self._transfer = self._channel.stream_stream(
            f"/{SERVICE}/{METHOD}", response_deserializer=pb.ActivationAck.FromString
        )
        self._lock = threading.Lock()
        self._queued = threading.Condition(self._lock)
        self._window = Window(window)
        self._call: Any = None
        self._refusals = 0  # one after the other
        self._stream = 0  # counts connections; what belongs to an earlier one must end
        self._failure: LowdimfaError | None = None
        self._dropping = False
        self._thread = StreamThread(
            f"block-{block}-sender", self._peer, self._connect, self._acknowledge, self._on_end
        )

    @property
    def unacknowledged(self) -> int:
        """Activations that were queued and have not been consumed yet."""
        with self._lock:
            return len(self._window)

    def start(self) -> None:
        """Connect, in a thread of its own."""
        self._thread.start()

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Copy and queue an activation; wait while the window is full. To be called by one thread.

        Parameters
        ----------
        kind, ticket
            What the activation is for and which micro-batch it belongs to.
        tensors
            One tensor of shape ``(samples, …)``, or two alike.

        Raises
        ------
        PeerError
            The next block is lost, or made no room in the window for ``liveness`` seconds.
        HandshakeError, ProtocolError
            The next block refused this one or a message of it.
        """
        room = self._wait_for_room()
        if self._dropping:
            return
        if self._failure is not None:
            raise self._failure
        if not room:
            raise self._peer.lost(f"none of {self._window.size} activations was acknowledged")
        message = self._copied(Activation(kind, ticket, tensors, self._window.next_sequence))
        with self._lock:
            self._window.add(message)
            if self._ring is not None and self._window.line is not None:
                self._announce(self._ring, self._window.line, message)
            else:
                self._queued.notify_all()

    def drop(self) -> None:
        """Let `send` drop what it is given from now on, also what waits: nobody will need it."""
        with self._lock:
            self._dropping = True
            self._window.alarm.wake()

    def abort(self, failure: LowdimfaError) -> None:
        """Let `send` raise an error from now on, also one that waits, and end the present connection."""
        with self._lock:
            self._failure = self._failure or failure
            self._begin_stream()
            self._window.alarm.wake()

    def close(self) -> None:
        """Disconnect and join the thread. What was not acknowledged is dropped."""
        self.abort(PeerError(f"block {self._block} closed its connection to {self._peer.name}"))
        self._thread.close()
        self._channel.close()
        if self._ring is not None:
            self._ring.close()
        with self._lock:
            self._window.alarm.close()

    def _connect(self) -> Any:
        with self._lock:
            self._begin_stream()
            offer = () if self._ring is None else ((RING_KEY, self._ring.shape.offer()),)
            self._call = self._transfer(self._frames(self._stream), metadata=(*self._metadata, *offer))
            return self._call

    def _begin_stream(self) -> None:
        """End what belongs to the connection before."""
        self._stream += 1
        self._queued.notify_all()
        self._window.follow(None)

    def _copied(self, activation: Activation) -> Message:
        """Return a message that holds a copy of the tensors."""
        payload = sum(tensor.nbytes for tensor in activation.tensors)
        if self._ring is None:
            return Message(activation.sequence, payload, list(split(activation, self._run, self._block)))
        ring, (kind, ticket, tensors, sequence) = self._ring, activation
        types = [(tensor.dtype, tensor.shape) for tensor in tensors]
        frame = without_data(activation, self._run, self._block)
        ring.write(sequence, frame, tensors)
        return Message(
            sequence,
            payload,
            [frame],
            lambda: Activation(kind, ticket, ring.tensors(sequence, types), sequence),
        )

    def _announce(self, ring: Ring, line: Line, message: Message) -> None:
        ring.announce(message.sequence)
        line.ring()
        for frame in message.frames:
            self.traffic.add_message(len(frame))
        self.traffic.add_tensors(message.payload)

    def _frames(self, stream: int) -> Iterator[bytes]:
        """Yield the frames of one connection, in gRPC's thread, from the first unacknowledged message on."""
        position = 0
        while (message := self._await(position, stream)) is not None:
            if self._ring is not None and self._share(self._ring, stream):
                return  # what the receiver takes for: the rest comes by shared memory
            shared = message.shared
            if shared is not None and self._ring_only:
                self._refuse(stream)
                return
            for frame in message.frames if shared is None else split(shared(), self._run, self._block):
                yield frame
                self.traffic.add_message(len(frame))
            self.traffic.add_tensors(message.payload)
            position = message.sequence + 1

    def _refuse(self, stream: int) -> None:
        """End, as the receiver can't open the memory; but not for a connection that broke before it could."""
        with self._lock:
            if self._stream != stream or not self._call.is_active():
                return  # there will be another one
            self._refusals += 1
            if self._refusals < _ASKED:
                self._call.cancel()
                return
        failure = HandshakeError(
            f"{self._peer.name} at {self._peer.address} can't open the shared memory of block {self._block}: they "
            "are on different hosts, in containers with networks of their own, or of different users",
            block=self._block,
            setting="placement.transport",
        )
        self.abort(failure)
        self._on_failure(failure)

    def _share(self, ring: Ring, stream: int) -> bool:
        """Hand the memory to the receiver if it wants it; announce there what waits, and let `send` do so from now on."""
        with self._lock:
            if self._stream != stream:
                return True
            call = self._call
        line = _line(call.initial_metadata() or (), ring)  # waits for the receiver's answer to the offer
        if line is None:
            return False
        with self._lock:
            if self._stream != stream:
                line.close()
                return True
            self._refusals = 0
            self._window.follow(line)
            for message in self._window:
                self._announce(ring, line, message)
        return True

    def _await(self, position: int, stream: int) -> Message | None:
        """Wait for the first message from ``position`` on; return ``None`` to end the connection."""
        with self._lock:
            self._queued.wait_for(lambda: self._stream != stream or self._window.has(position))
            return self._window.first(position) if self._stream == stream else None

    def _acknowledge(self, ack: pb.ActivationAck) -> None:
        with self._lock:
            if ack.sequence >= self._window.next_sequence:
                raise ProtocolError(
                    f"{self._peer.name} acknowledged activation {ack.sequence}, but block {self._block} sent "
                    f"only {self._window.next_sequence}: one of them was restarted without the other",
                    block=self._block,
                )
            self._window.acknowledge(ack.sequence)
            self._window.alarm.wake()

    def _wait_for_room(self) -> bool:
        """Wait for room in the window, or until nothing will be sent; return whether there is either in time."""
        end = time.monotonic() + self._peer.liveness
        while True:
            with self._lock:
                if self._failure or self._dropping or len(self._window) < self._window.size:
                    return True
            remaining = end - time.monotonic()
            if remaining <= 0:
                return False
            self._window.alarm.wait(remaining)

    def _on_end(self, failure: LowdimfaError | None) -> None:
        with self._lock:
            lost = len(self._window)
        in_order = failure is None and not lost
        failure = failure or PeerError(
            f"{self._peer.name} ended its connection with block {self._block}, leaving {lost} activations",
            block=self._block,
        )
        self.abort(failure)
        if not in_order:
            self._on_failure(failure)


def _line(answer: Iterable[tuple[str, str | bytes]], ring: Ring) -> Line | None:
    """Return a connection to who takes the ring, or None where there is none: on another host, above all."""
    name = dict(answer).get(RING_KEY)
    with suppress(OSError):
        return Line(name, ring.fileno()) if isinstance(name, str) else None
    return None
