"""One error to several subscribers: by the error broadcast, and by gRPC with nothing of this project around it.

The second is the floor of the first: the same bytes over as many streams of the same library, neither made nor read.
"""

from __future__ import annotations

import queue
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Any

import grpc
import torch

from benchmarks.transport.remote import each, processes
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.stream.broadcast import ErrorPublisher, ErrorSubscriber
from lowdimfa.services.stream.frames import ErrorVector
from lowdimfa.services.stream.limits import ErrorLimit
from lowdimfa.tickets import Ticket

LIVENESS = 30.0
ERROR = (64, 40)
"""Shape of a broadcast error: 10 KB."""
PAUSE, TURN = 0.005, 40
"""Seconds after each message, and messages of a turn."""
METHOD = "/benchmark.Bytes/Subscribe"


def _fail(error: Exception) -> None:
    raise error


def _turn(publish: Callable[[], None]) -> list[float]:
    """Publish messages with a pause after each; return when each was begun."""
    began = []
    for _ in range(TURN):
        began.append(time.perf_counter())
        publish()
        time.sleep(PAUSE)
    return began


class Head:
    """Broadcasts errors."""

    def __init__(self, security: Security, run: str, subscribers: int) -> None:
        self._publisher = ErrorPublisher(run, Topology([1] * (subscribers + 1), 1), 64)
        self._server = RpcServer("head", security, LIVENESS, max_workers=subscribers + 8)
        self._server.add(self._publisher)
        self._server.start()

    def address(self) -> str:
        """Return where it listens."""
        return self._server.address

    def publish(self) -> list[float]:
        """Publish errors to all subscribers; return when each was begun."""
        self._publisher.wait_for_subscribers(LIVENESS)
        error = torch.randn(ERROR)
        return _turn(lambda: self._publisher.publish(Ticket(self._publisher.published, 0), "train", error))

    def close(self) -> None:
        """End the server."""
        self._publisher.close()
        self._server.stop(0)


class PlainHead:
    """Sends bytes."""

    def __init__(self, security: Security, run: str, subscribers: int) -> None:
        self._subscribed, self._complete = threading.Barrier(subscribers + 1), False
        self._streams: list[queue.SimpleQueue[bytes | None]] = []
        self._server = grpc.server(ThreadPoolExecutor(subscribers + 8))
        handler = grpc.unary_stream_rpc_method_handler(self._subscribe)
        service, _, method = METHOD[1:].partition("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def address(self) -> str:
        """Return where it listens."""
        return f"127.0.0.1:{self._port}"

    def publish(self) -> list[float]:
        """Send as many bytes as an error has to all subscribers; return when each message was begun."""
        if not self._complete:
            self._subscribed.wait(LIVENESS)
            self._complete = True
        message = torch.randn(ERROR).numpy().tobytes()

        def publish() -> None:
            for stream in self._streams:
                stream.put(message)

        return _turn(publish)

    def _subscribe(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        stream: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        context.send_initial_metadata(())
        self._streams.append(stream)
        self._subscribed.wait(LIVENESS)
        while (message := stream.get()) is not None:
            yield message

    def close(self) -> None:
        """End the server."""
        for stream in self._streams:
            stream.put(None)
        self._server.stop(0)


class Subscriber:
    """Notes when each error arrived."""

    def __init__(self, security: Security, run: str, address: str, block: int) -> None:
        self._arrived: list[float] = []
        self._subscriber = ErrorSubscriber(
            address, security, run, Seat(block), ErrorLimit(ERROR[1]), LIVENESS, self._take, _fail
        )
        self._subscriber.start()

    def _take(self, error: ErrorVector) -> None:
        self._arrived.append(time.perf_counter())

    def arrived(self) -> list[float]:
        """Return when the messages of a turn came."""
        while len(self._arrived) < TURN:
            time.sleep(0.05)
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Unsubscribe."""
        self._subscriber.close()


class PlainSubscriber:
    """Notes when each message arrived."""

    arrived = Subscriber.arrived

    def __init__(self, security: Security, run: str, address: str, block: int) -> None:
        self._arrived: list[float] = []
        self._channel = security.channel(address, LIVENESS)
        self._call = self._channel.unary_stream(METHOD)(b"")
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        with suppress(grpc.RpcError):  # as a call ends that was cancelled
            for _ in self._call:
                self._arrived.append(time.perf_counter())

    def close(self) -> None:
        """Unsubscribe."""
        self._call.cancel()
        self._thread.join()
        self._channel.close()


class _Fanout:
    """A head and its subscribers, each in a process of its own.

    Parameters
    ----------
    stack
        Ends them.
    head, subscriber
        Their classes.
    subscribers
        How many there are.
    """

    def __init__(self, stack: ExitStack, head: type, subscriber: type, subscribers: int) -> None:
        run, security = secrets.token_hex(4), Security.loopback()
        (self._head,) = stack.enter_context(processes((head, security, run, subscribers)))
        address = self._head.call("address")
        makes = [(subscriber, security, run, address, block) for block in range(subscribers)]
        self._subscribers = stack.enter_context(processes(*makes))

    def turn(self) -> list[float]:
        """Return the milliseconds from the begin of each publication until the last subscriber had it."""
        began = self._head.call("publish")
        last = map(max, zip(*each(self._subscribers, "arrived"), strict=True))
        return [1e3 * (after - before) for before, after in zip(began, last, strict=True)]


def broadcast(subscribers: int, turns: int) -> dict[str, Any]:
    """Return how long an error takes to the last subscriber, beside the same bytes by gRPC alone; both take turns."""
    with ExitStack() as stack:
        ours = _Fanout(stack, Head, Subscriber, subscribers)
        plain = _Fanout(stack, PlainHead, PlainSubscriber, subscribers)
        pairs = [(ours.turn(), plain.turn()) for _ in range(1 + turns)][1:]  # the first one warms up
    taken, floor = (list(chain.from_iterable(times)) for times in zip(*pairs, strict=True))
    return {
        "subscribers": subscribers,
        "median_ms": statistics.median(taken),
        "p95_ms": statistics.quantiles(taken, n=20)[-1],
        "grpc_alone_median_ms": statistics.median(floor),
        "grpc_alone_p95_ms": statistics.quantiles(floor, n=20)[-1],
        "ratio_vs_grpc_alone": statistics.median(
            statistics.median(mine) / statistics.median(bare) for mine, bare in pairs
        ),
    }
