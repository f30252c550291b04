from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch
from relay import Relay
from rpc_helpers import LIVENESS, Inbox, eventually, no_threads_left

from lowdimfa.errors import HandshakeError, NotFiniteError, PeerError, ProtocolError
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.stream.broadcast import METHOD, SERVICE, ErrorPublisher, ErrorSubscriber
from lowdimfa.services.stream.limits import ErrorLimit
from lowdimfa.tickets import Ticket

RUN = "run-7"


class Broadcast:
    """A head that publishes through a relay, and what its subscribers received."""

    def __init__(self, capacity: int = 16, subscribers: int = 1) -> None:
        self.security = Security.loopback()
        self.publisher = ErrorPublisher(RUN, Topology([1] * (subscribers + 1), 1), capacity)
        self.server = RpcServer("head", self.security, LIVENESS)
        self.server.add(self.publisher)
        self.server.start()
        self.relay = Relay(self.server.address)
        self.errors = Inbox()
        self.failures = Inbox()
        self.subscribers: list[ErrorSubscriber] = []

    def subscribe(self, block: int = 0, **changes: Any) -> ErrorSubscriber:
        settings = {"run": RUN, "limit": ErrorLimit(3), "liveness": LIVENESS} | changes
        subscriber = ErrorSubscriber(
            self.relay.address,
            self.security,
            seat=Seat(block),
            on_error=self.errors.put,
            on_failure=self.failures.put,
            **settings,
        )
        self.subscribers.append(subscriber)
        subscriber.start()
        return subscriber

    def publish(self, step: int, error: torch.Tensor | None = None) -> None:
        self.publisher.publish(
            Ticket(step, 0), "train", torch.full((2, 3), float(step)) if error is None else error
        )

    def close(self) -> None:
        for subscriber in self.subscribers:
            subscriber.close()
            subscriber.close()
        self.publisher.close()
        self.server.stop(grace=1)
        self.relay.close()


@contextmanager
def broadcast(**settings: int) -> Iterator[Broadcast]:
    with no_threads_left():
        made = Broadcast(**settings)
        try:
            yield made
        finally:
            made.close()


def test_the_lag_counts_what_a_connection_has_not_taken() -> None:
    with broadcast(subscribers=2) as head:
        head.subscribe(0)
        for step in range(3):
            head.publish(step)
        eventually(lambda: head.publisher.lag(Seat(0)) == 0)
        assert head.publisher.lag(Seat(1)) == 3
        head.subscribe(1)
        eventually(lambda: head.publisher.lag(Seat(1)) == 0)


def test_every_block_gets_every_error_in_order() -> None:
    with broadcast(subscribers=3) as head:
        subscribers = [head.subscribe(block) for block in range(3)]
        head.publisher.wait_for_subscribers(LIVENESS)
        head.publisher.publish(Ticket(0, 1), "probe", torch.ones(4, 3))
        for step in range(1, 10):
            head.publish(step)
        got = head.errors.take(30)
        for step in range(1, 10):
            assert sum(vector.ticket == Ticket(step, 0) for vector in got) == 3
        probes = [vector for vector in got if vector.kind == "probe"]
        assert all(torch.equal(vector.error, torch.ones(4, 3)) for vector in probes)
        for subscriber in subscribers:
            eventually(lambda s=subscriber: s.traffic.count().messages == 10)  # type: ignore[misc]
        eventually(lambda: head.publisher.traffic.count().messages == 30)
        sent, received = head.publisher.traffic.count(), subscribers[0].traffic.count()
        assert sent.payload_bytes == 3 * received.payload_bytes == 3 * (48 + 9 * 24)
        assert sent.wire_bytes == 3 * received.wire_bytes


def test_a_cut_connection_loses_and_repeats_nothing() -> None:
    with broadcast(capacity=100) as head:
        head.subscribe()
        for step in range(60):
            if step % 10 == 5:
                head.relay.cut()
            head.publish(step)
        assert [vector.sequence for vector in head.errors.take(60)] == list(range(60))
        assert head.errors.empty()
        assert head.failures.empty()


def test_large_errors_travel_in_parts() -> None:
    with broadcast() as head:
        subscriber = head.subscribe(limit=ErrorLimit(300))
        error = torch.randn(2000, 300)
        head.publish(0, error)
        assert torch.equal(head.errors.get().error, error)
        assert subscriber.traffic.count().messages == 1


def test_close_delivers_what_was_published_and_then_ends_the_streams() -> None:
    with broadcast() as head:
        head.subscribe()
        head.publisher.wait_for_subscribers(LIVENESS)
        for step in range(5):
            head.publish(step)
        head.publisher.close()
        head.server.stop(grace=LIVENESS)
        assert len(head.errors.take(5)) == 5
        assert head.failures.empty()


def test_a_subscriber_that_misses_too_much_is_told_so() -> None:
    with broadcast(capacity=4) as head:
        for step in range(6):
            head.publish(step)
        head.subscribe(block=0)
        failure = head.failures.get()
        assert isinstance(failure, ProtocolError)
        assert "has published 6 errors and keeps those from 2" in failure.message


def test_a_lost_head_is_a_peer_error_in_time() -> None:
    with broadcast() as head:
        head.subscribe(liveness=0.5)
        head.publisher.wait_for_subscribers(LIVENESS)
        head.relay.blocked = True
        head.relay.cut()
        failure = head.failures.get(3)
        assert isinstance(failure, PeerError)
        assert "block 0 lost the head" in failure.message


def test_a_silent_connection_is_noticed() -> None:
    with broadcast() as head:
        head.subscribe(liveness=0.6)
        head.publish(0)
        head.errors.get()
        head.relay.pause()
        assert isinstance(head.failures.get(5), PeerError)


def test_a_defect_in_a_thread_is_reported_with_where_it_was() -> None:
    with broadcast() as head:
        head.subscribe(limit=None)  # nothing that has a check
        head.publish(0)
        failure = head.failures.get()
        assert isinstance(failure.__cause__, AttributeError)
        assert "in take" in "".join(traceback.format_exception(failure))


class Hanging:
    """A head whose interpreter hangs: it takes calls, as gRPC does that by itself, and answers none."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def attach(self, server: Any, pool: Any) -> None:
        method = grpc.unary_stream_rpc_method_handler(self.hang)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))

    def hang(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.released.wait(LIVENESS * 10)
        yield from ()


@pytest.mark.parametrize("security", [Security.loopback(), Security.mutual_tls()], ids=["plain", "TLS"])
def test_a_head_that_hangs_holds_nobody_up_and_is_lost_in_time(security: Security) -> None:
    hanging, failures, liveness = Hanging(), Inbox(), 0.6
    server = RpcServer("head", security, LIVENESS)
    server.add(hanging)
    limit, errors = ErrorLimit(3), Inbox()
    with no_threads_left(), server:
        subscriber = ErrorSubscriber(
            server.address, security, RUN, Seat(0), limit, liveness, errors.put, failures.put
        )
        subscriber.start()
        began = time.monotonic()
        while failures.empty():
            subscriber.renew()
        assert isinstance(failures.get(), PeerError)
        assert time.monotonic() - began < 5 * liveness
        closed = time.monotonic()
        subscriber.close()
        assert time.monotonic() - closed < 5 * liveness
        hanging.released.set()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.zeros(2, 4), ProtocolError, "(samples, …, 3)"),
        (torch.zeros(3), ProtocolError, "(samples, …, 3)"),
        (torch.zeros(2, 3, dtype=torch.float64), ProtocolError, "float64"),
        (torch.tensor([[0.0, float("nan"), 1.0]]), NotFiniteError, "block 0"),
    ],
)
def test_unusable_errors_name_block_and_step(error: torch.Tensor, kind: type[Exception], words: str) -> None:
    with broadcast() as head:
        head.subscribe()
        head.publish(12, error)
        failure = head.failures.get()
        assert type(failure) is kind
        assert words in failure.message
        assert (failure.block, failure.step) == (0, 12)


def test_strangers_are_refused() -> None:
    with broadcast() as head:
        head.subscribe(run="another")
        assert isinstance(head.failures.get(), HandshakeError)
        head.subscribe(block=1)
        assert isinstance(head.failures.get(), ProtocolError)


def test_missing_subscribers_are_named() -> None:
    with broadcast(subscribers=3) as head:
        head.subscribe(block=1)
        head.publish(0)
        head.errors.get()  # it is subscribed, however long that took
        with pytest.raises(PeerError, match="block 0, block 2"):
            head.publisher.wait_for_subscribers(0.5)


def test_overhead_on_the_wire_is_below_ten_per_cent() -> None:
    count, payload = 300, 64 * 10 * 4
    with broadcast(capacity=count + 1) as head:
        subscriber = head.subscribe(limit=ErrorLimit(10))
        head.publish(0, torch.zeros(64, 10))
        head.errors.get()  # the connection is set up
        before, counted = head.relay.downstream, subscriber.traffic.count().wire_bytes
        for step in range(100_000, 100_000 + count):
            head.publish(step, torch.randn(64, 10))
        head.errors.take(count)
        measured = (head.relay.downstream - before) / count
        counted = (subscriber.traffic.count().wire_bytes - counted) // count
        print(f"{measured:.1f} bytes on the wire, {counted} counted, {payload} payload")
        assert counted - payload < 45
        assert measured < 1.1 * payload
