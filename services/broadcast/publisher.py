"""The head's end of the error broadcast."""

from __future__ import annotations

import queue
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import grpc
from torch import Tensor

from lowdimfa.errors import PeerError
from lowdimfa.services.rpc.protocol import CHUNK_BYTES, Traffic, run_fingerprint
from lowdimfa.services.rpc.tensors import dtype_code, encode
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.rpc.v1 import broadcast_pb2 as pb
from lowdimfa.tickets import Ticket

ErrorKind = Literal["train", "probe"]


class _Published(NamedTuple):
    """One error, shared by all connections.

    Attributes
    ----------
    sequence
        Position in the broadcast.
    parts
        Its serialised messages.
    payload
        Size of its buffer in bytes.
    """

    sequence: int
    parts: list[bytes]
    payload: int


_Queue = queue.SimpleQueue[_Published | None]
"""What a subscriber's stream has still to send; None ends it. Its thread wakes for that alone, without a lock."""


class ErrorPublisher:
    """Sends each error to every block, and keeps the last ones for those that lost their connection.

    Parameters
    ----------
    run
        Identifier of the run.
    topology
        All workers of the run; those before the head subscribe.
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
        self._subscribers = [seat for seat in topology.seats if seat != topology.head]
        self._changed = threading.Condition()
        self._ring: deque[_Published] = deque(maxlen=capacity)
        self._next_sequence = 0
        self._connections: dict[Seat, _Queue] = {}
        self._taken: dict[Seat, int] = {}
        self._closed = False

    def attach(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """Register the service."""
        method = grpc.unary_stream_rpc_method_handler(
            self._subscribe, request_deserializer=pb.SubscribeRequest.FromString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("lowdimfa.v1.ErrorBroadcast", {"Subscribe": method}),)
        )

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Send the error of one micro-batch to all subscribers; return at once.

        Parameters
        ----------
        ticket, kind
            What the error belongs to and what it is for.
        error
            Shape ``(samples, …, error_dim)``.
        """
        data = bytes(encode(error))
        chunks = [data[start : start + CHUNK_BYTES] for start in range(0, max(len(data), 1), CHUNK_BYTES)]
        with self._changed:
            parts = [
                pb.ErrorMessage(
                    run=self._fingerprint,
                    step=ticket.step,
                    microbatch=ticket.microbatch,
                    kind=pb.ERROR_KIND_PROBE if kind == "probe" else pb.ERROR_KIND_TRAIN,
                    sequence=self._next_sequence,
                    dtype=dtype_code(error.dtype),
                    shape=error.shape,
                    parts_left=len(chunks) - 1 - index,
                    data=chunk,
                    checksum=zlib.crc32(chunk),
                ).SerializeToString()
                for index, chunk in enumerate(chunks)
            ]
            published = _Published(self._next_sequence, parts, len(data))
            self._ring.append(published)
            self._next_sequence += 1
            for connection in self._connections.values():
                connection.put(published)

    @property
    def published(self) -> int:
        """Errors published so far."""
        return self._next_sequence

    def lag(self, seat: Seat) -> int:
        """Return how many errors were published that a subscriber's connection has not taken yet."""
        return self._next_sequence - self._taken.get(seat, 0)

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

    def _sent(self, error: _Published, seat: Seat) -> None:
        for part in error.parts:
            self.traffic.add_message(len(part))
        self.traffic.add_tensors(error.payload)
        self._taken[seat] = error.sequence + 1

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
                yield from error.parts
                self._sent(error, seat)
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
            for error in islice(self._ring, sequence - self._oldest, None):
                connection.put(error)
            if self._closed:
                connection.put(None)
            self._changed.notify_all()

    @property
    def _oldest(self) -> int:
        return self._next_sequence - len(self._ring)

    def _require_kept(self, sequence: int, seat: Seat, context: Any) -> None:
        """End a stream with an error if what it is to send next isn't kept, or was not published yet."""
        published, oldest = self._next_sequence, self._oldest
        if not oldest <= sequence <= published:
            context.abort(
                grpc.StatusCode.OUT_OF_RANGE,
                f"{self._topology.name(seat)} asks for error {sequence}, but the head has published {published} errors "
                f"and keeps those from {oldest} on",
            )
