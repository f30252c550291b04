"""The head's end of the error broadcast."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import grpc
from torch import Tensor

from lowdimfa.errors import PeerError
from lowdimfa.tickets import Ticket
from services.rpc.protocol import CHUNK_BYTES, Traffic, run_fingerprint
from services.rpc.seats import Seat, Seating
from services.rpc.tensors import dtype_code, encode
from services.rpc.v1 import broadcast_pb2 as pb

ErrorKind = Literal["train", "probe"]


class _Published(NamedTuple):
    """The serialised messages of one error, shared by all streams, and the size of its buffer in bytes."""

    parts: list[bytes]
    payload: int


class ErrorPublisher:
    """Sends each error to every block, and keeps the last ones for those that lost their connection.

    Parameters
    ----------
    run
        Identifier of the run.
    seating
        All workers of the run; those before the head subscribe.
    capacity
        Errors that are kept. A subscriber that misses more than these can't go on.

    Attributes
    ----------
    traffic
        What was sent, counted once for each subscriber.
    """

    def __init__(self, run: str, seating: Seating, capacity: int) -> None:
        self.traffic = Traffic()
        self._run = run
        self._fingerprint = run_fingerprint(run)
        self._seating = seating
        self._subscribers = [seat for seat in seating.seats if seat != seating.head]
        self._changed = threading.Condition()
        self._ring: deque[_Published] = deque(maxlen=capacity)
        self._next_sequence = 0
        self._active: dict[Seat, grpc.ServicerContext] = {}
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
            self._ring.append(_Published(parts, len(data)))
            self._next_sequence += 1
            self._changed.notify_all()

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
                names = ", ".join(map(self._seating.name, missing))
                raise PeerError(
                    f"not subscribed to the error broadcast after {timeout:g} s: {names}",
                    block=missing[0].block,
                    setting="run.liveness_seconds",
                )

    def close(self) -> None:
        """End every stream after its last error. `RpcServer.stop` waits for that, as long as its grace."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _missing(self) -> list[Seat]:
        return [seat for seat in self._subscribers if seat not in self._active]

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
                f"{', '.join(map(self._seating.name, self._subscribers))}",
            )
        context.send_initial_metadata(())
        if not context.add_callback(self._wake):
            return
        with self._changed:
            self._active[seat] = context  # ends its earlier stream, whose connection may hang
            self._changed.notify_all()
        try:
            sequence = request.next_sequence
            while (error := self._await(sequence, seat, context)) is not None:
                for part in error.parts:
                    yield part
                    self.traffic.add_message(len(part))
                self.traffic.add_tensors(error.payload)
                sequence += 1
                self._taken[seat] = sequence
        finally:
            with self._changed:
                if self._active.get(seat) is context:
                    del self._active[seat]

    def _await(self, sequence: int, seat: Seat, context: grpc.ServicerContext) -> _Published | None:
        """Wait for one error; return ``None`` when the stream is to end."""

        def ended() -> bool:
            replaced = self._active.get(seat) is not context
            return replaced or not context.is_active()

        with self._changed:
            self._changed.wait_for(lambda: sequence != self._next_sequence or self._closed or ended())
            published = self._next_sequence
            oldest = published - len(self._ring)
            if ended() or (self._closed and sequence == published):
                return None
            if oldest <= sequence < published:
                return self._ring[sequence - oldest]
        context.abort(
            grpc.StatusCode.OUT_OF_RANGE,
            f"{self._seating.name(seat)} asks for error {sequence}, but the head has published {published} errors "
            f"and keeps those from {oldest} on",
        )
        return None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
