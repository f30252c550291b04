"""A block's connections: its server, the stream from the block before, the stream to the one after, the errors."""

from __future__ import annotations

import threading
from functools import partial

from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import LowdimfaError
from lowdimfa.tickets import Ticket
from services.block.activations import Activation, Kind, Receiver, SampleLimit, Sender
from services.block.faults import FaultInjector
from services.block.inbox import Inbox
from services.block.receiver import ActivationReceiver, as_it_came
from services.block.sender import ActivationSender
from services.broadcast.publisher import ErrorPublisher
from services.broadcast.subscriber import ErrorSubscriber
from services.monitoring.metrics import BlockMetrics
from services.rpc.handshake import HandshakeServicer, Hello, greet
from services.rpc.protocol import TrafficCount
from services.rpc.security import Security
from services.rpc.server import RpcServer

CLOSE_GRACE = 1.0
"""Seconds that open streams get to end in order."""


class Links:
    """All connections of one block. What its place in the network doesn't have is missing.

    Parameters
    ----------
    mine
        What the block says of itself to its neighbours.
    blocks
        How many there are.
    samples
        Most samples in one activation.
    window
        Micro-batches in flight.
    security, host, liveness
        Secrets of the run, address to listen on, seconds of silence after which a peer counts as lost.
    inbox
        Gets activations, errors, and failures.
    faults
        What is to go wrong on the way here.
    """

    def __init__(
        self,
        mine: Hello,
        blocks: int,
        samples: SampleLimit,
        window: int,
        *,
        security: Security,
        host: str,
        liveness: float,
        inbox: Inbox,
        faults: FaultInjector,
    ) -> None:
        self._mine, self._window, self._liveness = mine, window, liveness
        self._security, self._inbox, self._faults = security, inbox, faults
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._publisher: ErrorPublisher | None = None
        self._subscriber: ErrorSubscriber | None = None
        self._counting = threading.Lock()
        self._counted = TrafficCount(0, 0, 0)
        self._counted_activations = {"sent": 0, "received": 0}
        self._server = RpcServer(f"block-{mine.block}", security, liveness, host, max_workers=2 * blocks + 8)
        self._server.add(HandshakeServicer(mine))
        if mine.block > 0:
            receiver = ActivationReceiver(
                mine.run,
                mine.block,
                mine.block - 1,
                window,
                inbox.put,
                inbox.abort,
                faults.frame_arrives if mine.role == "head" else as_it_came,
            )
            receiver.expect(*samples)
            self._server.add(receiver)
            self._receiver = receiver
        if mine.role == "head" and blocks > 1:
            # Twice the window: each micro-batch in flight may have an error and a probe's response to replay.
            self._publisher = ErrorPublisher(mine.run, blocks - 1, 2 * window + 2)
            self._server.add(self._publisher)
        self._server.start()
        self.address: str = self._server.address

    def connect(self, peers: list[str]) -> None:
        """Greet the neighbours and the head, subscribe to the errors, and open the stream to the next block.

        Parameters
        ----------
        peers
            gRPC addresses of all blocks, in order.
        """
        mine, head = self._mine, len(peers) - 1
        for peer in sorted({mine.block - 1, mine.block + 1, head} & set(range(len(peers))) - {mine.block}):
            greet(peers[peer], self._security, mine, self._liveness)
        if mine.role == "head":
            return
        self._subscriber = ErrorSubscriber(
            peers[head],
            self._security,
            mine.run,
            mine.block,
            mine.error_dim,
            self._liveness,
            self._inbox.put,
            self._inbox.abort,
            self._faults.error_arrives,
        )
        self._subscriber.start()
        sender = ActivationSender(
            peers[mine.block + 1],
            self._security,
            mine.run,
            mine.block,
            mine.block + 1,
            self._window,
            self._liveness,
            self._inbox.abort,
        )
        sender.start()
        self._sender = sender

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        if self._publisher is not None:
            self._publisher.wait_for_subscribers(self._liveness)

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""
        assert self._sender is not None, "only blocks before the head send"
        self._sender.send(kind, ticket, tensors)

    def release(self, activation: Activation) -> None:
        """Tell the previous block that its activations were consumed."""
        assert self._receiver is not None, "only blocks after the first receive"
        self._receiver.release(activation)

    def renew(self) -> None:
        """Have what may have been lost on its way here repeated; harmless if nothing was."""
        if self._subscriber is not None:
            self._subscriber.renew()
        if self._receiver is not None:
            self._receiver.renew()

    def drop(self) -> None:
        """Send no more activations: the block is to come to rest, and the next one may be lost."""
        if self._sender is not None:
            self._sender.drop()

    def abort(self, error: LowdimfaError) -> None:
        """End a wait for room in the next block's window; nothing more can be sent then."""
        if self._sender is not None:
            self._sender.abort(error)

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Broadcast an error to all blocks; a head that is the only block has none to tell."""
        if self._publisher is not None:
            self._publisher.publish(ticket, kind, error)

    def broadcast(self) -> TrafficCount:
        """Return what this block received of the error broadcast, or sent of it if it is the head."""
        end = self._publisher or self._subscriber
        return end.traffic.count() if end is not None else TrafficCount(0, 0, 0)

    def queues(self) -> dict[str, int]:
        """Return how much waits, or has passed, where."""
        found = {"inbox": len(self._inbox)}
        if self._sender is not None:
            found["activations not acknowledged"] = self._sender.unacknowledged
        if self._subscriber is not None:
            found["errors received"] = self._subscriber.received
        if self._publisher is not None:
            found["errors published"] = self._publisher.published
        return found

    def report_lags(self, metrics: BlockMetrics) -> None:
        """In the head, let metrics read each subscriber's lag when they are asked; training pays nothing for it."""
        if self._publisher is not None:
            for subscriber in range(self._mine.block):
                metrics.lag(subscriber, partial(self._publisher.lag, subscriber))

    def count_into(self, metrics: BlockMetrics) -> None:
        """Bring metrics up to the connections' own counts; any thread may call."""
        with self._counting:
            now = self.broadcast()
            messages, payload, wire = (
                after - before for after, before in zip(now, self._counted, strict=True)
            )
            metrics.broadcast("received" if self._subscriber else "sent", messages, payload, wire)
            self._counted = now
            for direction, end in (("sent", self._sender), ("received", self._receiver)):
                if end is not None:
                    total = end.traffic.count().payload_bytes
                    metrics.activation(direction, total - self._counted_activations[direction])
                    self._counted_activations[direction] = total

    def close(self, grace: float = CLOSE_GRACE) -> None:
        """Close every connection, give open streams ``grace`` seconds to end in order, and join all threads."""
        if self._sender is not None:
            self._sender.close()
        if self._publisher is not None:
            self._publisher.close()
        if self._subscriber is not None:
            self._subscriber.close()
        if self._receiver is not None:
            self._receiver.close()
        self._server.stop(grace)
