"""The upstream end of a stream of activations, or of what replicas of a block tell each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from lowdimfa.errors import LowdimfaError, PeerError, ProtocolError
from lowdimfa.services.rpc.connection import Peer, StreamThread
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.stream.carriers import Bypass, Upstream
from lowdimfa.services.stream.frames import Kind, Message, run_fingerprint
from lowdimfa.services.stream.handover import Alarm
from lowdimfa.services.stream.resumable import Replay, Sent, Traffic
from lowdimfa.tickets import Ticket

METHOD = "/lowdimfa.v1.ActivationStream/Transfer"
"""The gRPC method that carries activations."""

SENDER_KEY = "lowdimfa-sender"
"""The metadata key by which a sender says where it sits."""

_ASKED = 4
"""Times that a receiver is asked to take an offer: one that ends a connection just then refuses it too."""


def message_name(block: int, peer: int) -> str:
    """Return what a block's messages to another one are called in errors: among replicas of one block they are shards."""
    return "shard" if block == peer else "activation"


class Sender:
    """Sends messages to another block, each once and in order, over a connection that may break.

    Parameters
    ----------
    address, security
        Where the other block listens, and the secrets of the run.
    run, block, peer
        Identifier of the run, index of this block and of the other one.
    window
        Messages that may be unacknowledged at once.
    liveness
        Seconds without connection, or with a full window, after which the other block counts as lost.
    on_failure
        Told once, in a thread of this object, why nothing more can be sent. `send` raises the same error.
    rank
        Of this replica of its block.
    name
        Of the other block, in errors, where it is not simply ``block <peer>``.
    carrier
        Takes the tensors. It is this object's to close.
    patience
        Seconds with a full window after which the other block counts as lost, where that isn't the liveness.

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
        carrier: Upstream | None = None,
        patience: float | None = None,
    ) -> None:
        self.traffic = Traffic()
        self._run = run_fingerprint(run)
        self._block, self._what = block, message_name(block, peer)
        self._on_failure = on_failure
        self._peer = Peer(block, name or f"block {peer}", address, liveness)
        self._carrier = carrier or Upstream()
        self._patience = liveness if patience is None else patience
        self._metadata = (*security.metadata, (SENDER_KEY, str(Seat(block, rank))), *self._carrier.offer)
        self._channel = security.channel(address, liveness)
        self._transfer = self._channel.stream_stream(METHOD, response_deserializer=pb.Ack.FromString)
        self._lock = threading.Lock()
        self._queued = threading.Condition(self._lock)
        self._replay = Replay(window)
        self._alarm = Alarm()  # what to wait at for room, however acknowledgements come
        self._bypass: Bypass | None = None
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
        """Messages that were queued and have not been consumed yet."""
        with self._lock:
            return self._outstanding()

    def start(self) -> None:
        """Connect, in a thread of its own, and let the carrier meet the other end.

        Raises
        ------
        PeerError
            The carrier waited for the other end in vain.
        """
        self._thread.start()
        try:
            self._carrier.start()
        except LowdimfaError:
            self.close()
            raise

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...], times: float = 1.0) -> None:
        """Queue a message; wait while the window is full. To be called by one thread.

        Parameters
        ----------
        kind, ticket
            What the message is for and which micro-batch it belongs to.
        tensors
            Each of shape ``(samples, …)``, as `Message` has them.
        times
            How many times as long the other block may take for what is on its way as for a micro-batch.

        Raises
        ------
        PeerError
            The other block is lost, or made no room in the window for ``times`` the patience.
        HandshakeError, ProtocolError
            The other block refused this one or a message of it.
        """
        patience = times * self._patience
        room = self._wait_for_room(patience)
        if self._dropping:
            return
        if self._failure is not None:
            raise self._failure
        if not room:
            raise self._peer.lost(f"none of {self._replay.capacity} {self._what}s was acknowledged", patience)
        message = Message(kind, ticket, tensors, self._replay.next_sequence)
        sent = self._carrier.pack(message, self._run, self._block)
        with self._lock:
            self._replay.add(sent)
            if self._bypass is not None:
                self._announce(self._bypass, sent)
            else:
                self._queued.notify_all()

    def drop(self) -> None:
        """Let `send` drop what it is given from now on, also what waits: nobody will need it."""
        with self._lock:
            self._dropping = True
            self._alarm.wake()

    def abort(self, failure: LowdimfaError) -> None:
        """Let `send` raise an error from now on, also one that waits, and end the present connection."""
        with self._lock:
            self._failure = self._failure or failure
            self._begin_stream()
            self._alarm.wake()

    def close(self) -> None:
        """Disconnect and join the thread. What was not acknowledged is dropped."""
        self.abort(PeerError(f"block {self._block} closed its connection to {self._peer.name}"))
        self._thread.close()
        self._channel.close()
        self._carrier.close()
        with self._lock:
            self._alarm.close()

    def _connect(self) -> Any:
        with self._lock:
            self._begin_stream()
            self._call = self._transfer(self._frames(self._stream), metadata=self._metadata)
            return self._call

    def _begin_stream(self) -> None:
        """End what belongs to the connection before."""
        self._stream += 1
        self._queued.notify_all()
        self._follow(None)

    def _follow(self, bypass: Bypass | None) -> None:
        """Take acknowledgements from there, in place of the bypass before, in which nothing is left."""
        self._outstanding()
        self._bypass = bypass
        self._alarm.follow(bypass)

    def _outstanding(self) -> int:
        """Return how many messages were not acknowledged, as far as that is known."""
        if self._bypass is not None:
            self._replay.acknowledge(self._bypass.take())
        return len(self._replay)

    def _announce(self, bypass: Bypass, message: Sent) -> None:
        bypass.announce(message.sequence)
        self.traffic.add_sent(message)

    def _frames(self, stream: int) -> Iterator[bytes]:
        """Yield the frames of one connection, in gRPC's thread, from the first unacknowledged message on."""
        position = 0
        while (message := self._await(position, stream)) is not None:
            if self._carrier.offer and self._pass_by(stream):
                return  # what the receiver takes for: the rest comes beside the connection
            if message.plain is not None and (failure := self._carrier.refused(self._peer)) is not None:
                self._give_up(stream, failure)
                return
            for frame in message.frames if message.plain is None else message.plain():
                yield frame
                self.traffic.add_frame(len(frame))
            self.traffic.add_tensors(message.payload)
            position = message.sequence + 1

    def _give_up(self, stream: int, failure: LowdimfaError) -> None:
        """End, as the receiver can't take the offer; but not for a connection that broke before it could."""
        with self._lock:
            if self._stream != stream or not self._call.is_active():
                return  # there will be another one
            self._refusals += 1
            if self._refusals < _ASKED:
                self._call.cancel()
                return
        self.abort(failure)
        self._on_failure(failure)

    def _pass_by(self, stream: int) -> bool:
        """Take the bypass if the receiver has answered with one; announce there what waits, and from now on all."""
        with self._lock:
            if self._stream != stream:
                return True
            call = self._call
        bypass = self._carrier.bypass(dict(call.initial_metadata() or ()))  # waits for the receiver's answer
        if bypass is None:
            return False
        with self._lock:
            if self._stream != stream:
                bypass.close()
                return True
            self._refusals = 0
            self._follow(bypass)
            for message in self._replay.since(0):
                self._announce(bypass, message)
        return True

    def _await(self, position: int, stream: int) -> Sent | None:
        """Wait for the first message from ``position`` on; return ``None`` to end the connection."""
        with self._lock:
            self._queued.wait_for(lambda: self._stream != stream or self._replay.first(position) is not None)
            return self._replay.first(position) if self._stream == stream else None

    def _acknowledge(self, ack: pb.Ack) -> None:
        with self._lock:
            if ack.sequence >= self._replay.next_sequence:
                raise ProtocolError(
                    f"{self._peer.name} acknowledged {self._what} {ack.sequence}, but block {self._block} sent "
                    f"only {self._replay.next_sequence}: one of them was restarted without the other",
                    block=self._block,
                )
            self._replay.acknowledge(ack.sequence)
            self._alarm.wake()

    def _wait_for_room(self, patience: float) -> bool:
        """Wait for room in the window, or until nothing will be sent; return whether there is either in time."""
        end = time.monotonic() + patience
        while True:
            with self._lock:
                if self._failure or self._dropping or self._outstanding() < self._replay.capacity:
                    return True
            remaining = end - time.monotonic()
            if remaining <= 0:
                return False
            self._alarm.wait(remaining)

    def _on_end(self, failure: LowdimfaError | None) -> None:
        with self._lock:
            lost = self._outstanding()
        in_order = failure is None and not lost
        failure = failure or PeerError(
            f"{self._peer.name} ended its connection with block {self._block}, leaving {lost} {self._what}s",
            block=self._block,
        )
        self.abort(failure)
        if not in_order:
            self._on_failure(failure)
