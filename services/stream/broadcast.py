"""The error broadcast, always by gRPC: the head publishes errors, and every other block that learns subscribes to all."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import numpy
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import LowdimfaError, NotFiniteError, PeerError
from lowdimfa.services.rpc.connection import Peer, StreamThread
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.rpc.v1 import stream_pb2 as pb
from lowdimfa.services.stream.frames import ErrorVector, Message, run_fingerprint, split
from lowdimfa.services.stream.limits import ErrorLimit
from lowdimfa.services.stream.resumable import Arriving, Incoming, Replay, Sent, Traffic, as_it_came
from lowdimfa.tickets import Ticket

SERVICE, METHOD = "lowdimfa.v1.ErrorBroadcast", "Subscribe"

_HEAD = 0
"""What errors have for the index of their sender, which is always the head."""

_Queue = queue.SimpleQueue[Sent | None]
"""What a subscriber's stream has still to send; None ends it. Its thread wakes for that alone, without a lock."""


class ErrorPublisher:
    """Sends each error to every block, and keeps the last ones for those that lost their connection.

    Parameters
    ----------
    run
        Identifier of the run.
    topology
        All workers of the run; those that learn from the errors subscribe.
    capacity
        Errors that are kept. A subscriber that misses more than these can't go on.

    Attributes
    ----------
    traffic
        What was sent, counted once for each subscriber.
    """

    def __init__(self, run: str, topology: Topology, capacity: int) -> None:
        self.traffic = Traffic()
        self._run = run
        self._fingerprint = run_fingerprint(run)
        self._topology = topology
        self._subscribers = topology.subscribers
        self._changed = threading.Condition()
        self._replay = Replay(capacity)
        self._connections: dict[Seat, _Queue] = {}
        self._taken: dict[Seat, int] = {}
        self._closed = False

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service."""
        method = grpc.unary_stream_rpc_method_handler(
            self._subscribe, request_deserializer=pb.SubscribeRequest.FromString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))

    def publish(
        self, ticket: Ticket, kind: ErrorKind, error: Tensor, projection: Tensor | None = None
    ) -> None:
        """Send the error of one micro-batch to all subscribers; return at once.

        Parameters
        ----------
        ticket, kind
            What the error belongs to and what it is for.
        error
            Shape ``(samples, …, error_dim)``.
        projection
            ``P`` that made it, shape ``(error_dim, source_width)``, to go with it.
        """
        tensors = (error,) if projection is None else (error, projection)
        with self._changed:
            sequence = self._replay.next_sequence
            message = Message("error" if kind == "train" else "probe", ticket, tensors, sequence)
            frames = list(split(message, self._fingerprint, _HEAD, guarded=True))
            published = Sent(sequence, sum(tensor.nbytes for tensor in tensors), frames)
            self._replay.add(published)
            for connection in self._connections.values():
                connection.put(published)

    @property
    def published(self) -> int:
        """Errors published so far."""
        return self._replay.next_sequence

    def lag(self, seat: Seat) -> int:
        """Return how many errors were published that a subscriber's connection has not taken yet."""
        return self.published - self._taken.get(seat, 0)

    def wait_for_subscribers(self, timeout: float) -> None:
        """Wait until every block is subscribed.

        Raises
        ------
        PeerError
            Some are not after ``timeout`` seconds; the message has their names.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._missing(), timeout):
                missing = self._missing()
                names = ", ".join(map(self._topology.name, missing))
                raise PeerError(
                    f"not subscribed to the error broadcast after {timeout:g} s: {names}",
                    block=missing[0].block,
                    setting="run.liveness_seconds",
                )

    def close(self) -> None:
        """End every stream after its last error. `RpcServer.stop` waits for that, as long as its grace."""
        with self._changed:
            self._closed = True
            for connection in self._connections.values():
                connection.put(None)

    def _missing(self) -> list[Seat]:
        return [seat for seat in self._subscribers if seat not in self._connections]

    def _subscribe(self, request: pb.SubscribeRequest, context: Any) -> Iterator[bytes]:
        block, seat = request.block, Seat(request.block, request.rank)
        if request.run != self._run:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"block {block} belongs to run {request.run!r}, the head to run {self._run!r}",
            )
        if seat not in self._subscribers:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"block {block}, replica {request.rank} can't subscribe; the subscribers are "
                f"{', '.join(map(self._topology.name, self._subscribers))}",
            )
        context.send_initial_metadata(())
        connection: _Queue = queue.SimpleQueue()
        try:
            if not context.add_callback(partial(connection.put, None)):
                return
            self._open(seat, connection, request.next_sequence, context)
            while (error := connection.get()) is not None and self._connections.get(seat) is connection:
                self._require_kept(error.sequence, seat, context)
                # Before the block has it: that may be the last thing for which a run waits.
                self.traffic.add_sent(error)
                yield from error.frames
                self._taken[seat] = error.sequence + 1
        finally:
            with self._changed:
                if self._connections.get(seat) is connection:
                    del self._connections[seat]

    def _open(self, seat: Seat, connection: _Queue, sequence: int, context: Any) -> None:
        """Let a subscriber's connection have every error from a sequence on, in place of its earlier one, if any."""
        with self._changed:
            self._require_kept(sequence, seat, context)
            if seat in self._connections:
                self._connections[seat].put(None)  # it may hang
            self._connections[seat] = connection
            for error in self._replay.since(sequence):
                connection.put(error)
            if self._closed:
                connection.put(None)
            self._changed.notify_all()

    def _require_kept(self, sequence: int, seat: Seat, context: Any) -> None:
        """End a stream with an error if what it is to send next isn't kept, or was not published yet."""
        published, oldest = self._replay.next_sequence, self._replay.oldest
        if not oldest <= sequence <= published:
            context.abort(
                grpc.StatusCode.OUT_OF_RANGE,
                f"{self._topology.name(seat)} asks for error {sequence}, but the head has published {published} errors "
                f"and keeps those from {oldest} on",
            )


class _Subscription:
    """A subscriber's call, over a channel of its own: it can be ended at any time, by ending the channel.

    Before the head answers, gRPC holds the lock of a call of this kind, which its ``cancel`` would wait for: for a head
    that hangs, without end.
    """

    def __init__(self, channel: Any, request: pb.SubscribeRequest, metadata: Any) -> None:
        self._channel = channel
        method = channel.unary_stream(
            f"/{SERVICE}/{METHOD}", request_serializer=pb.SubscribeRequest.SerializeToString
        )
        self._call = method(request, metadata=metadata)
        self._cancelled = False
        self.initial_metadata = self._call.initial_metadata

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._call)

    def is_active(self) -> bool:
        """Return whether it goes on. Of the end of a channel a call knows only once it is read."""
        return not self._cancelled and bool(self._call.is_active())

    def cancel(self) -> None:
        """End it, if that hasn't been done."""
        self._cancelled = True
        self._channel.close()


class ErrorSubscriber:
    """Receives every error once and in order, over a connection that may break, lose, repeat or garble messages.

    Parameters
    ----------
    address, security
        Where the head listens, and the secrets of the run.
    run, seat
        Identifier of the run, and who subscribes.
    limit
        What an error must be.
    liveness
        Seconds without connection after which the head counts as lost.
    on_error
        Takes each error, in a thread of this object's, one at a time.
    on_failure
        Told once, in a thread of this object's, why there will be no more errors: `PeerError` for a lost head,
        `HandshakeError` for a refusal, `ProtocolError` for a message that can't be used however often it is asked for,
        `NotFiniteError`.
    arriving
        Stands for the network in drills: returns what arrives in place of a frame.

    Attributes
    ----------
    traffic
        What was received.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        run: str,
        seat: Seat,
        limit: ErrorLimit,
        liveness: float,
        on_error: Callable[[ErrorVector], None],
        on_failure: Callable[[LowdimfaError], None],
        arriving: Arriving = as_it_came,
    ) -> None:
        source = run_fingerprint(run), _HEAD
        self._incoming = Incoming("broadcast error", seat.block, *source, limit, self._came, arriving)
        self.traffic = self._incoming.traffic
        self._run, self._seat = run, seat
        self._on_error = on_error
        self._on_failure = on_failure
        self._metadata = security.metadata
        self._channel = partial(security.channel, address, liveness, single_threaded=True)
        peer = Peer(seat.block, "the head", address, liveness)
        self._thread = StreamThread(
            f"block-{seat.block}-errors", peer, self._subscribe, self._incoming.take, self._on_end
        )

    def start(self) -> None:
        """Subscribe, in a thread of its own."""
        self._thread.start()

    @property
    def received(self) -> int:
        """Errors received so far."""
        return self._incoming.expected

    def renew(self) -> None:
        """Subscribe anew, so that the head repeats what may have been lost, unless an error is just coming."""
        if not self._incoming.grows():
            self._thread.renew()

    def close(self) -> None:
        """Unsubscribe and join the thread."""
        self._thread.close()

    def _subscribe(self) -> Any:
        """Begin a connection with what has not come over those before."""
        self._incoming.restart()
        block, rank = self._seat
        request = pb.SubscribeRequest(
            run=self._run, block=block, rank=rank, next_sequence=self._incoming.expected
        )
        return _Subscription(self._channel(), request, self._metadata)

    def _on_end(self, failure: LowdimfaError | None) -> None:
        if failure is not None:
            self._on_failure(failure)

    def _came(self, message: Message) -> None:
        if not all(numpy.isfinite(tensor.float().numpy()).all() for tensor in message.tensors):
            found = (
                f"block {self._seat.block} received a broadcast error that is not finite at {message.ticket}"
            )
            raise NotFiniteError(found, block=self._seat.block, step=message.ticket.step)
        kind: ErrorKind = "train" if message.kind == "error" else "probe"
        self._on_error(ErrorVector(message.ticket, kind, message.sequence, message.tensors))
