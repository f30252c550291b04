"""What the ends of a block's connections have carried, and what waits at them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.stream.broadcast import ErrorPublisher, ErrorSubscriber
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.services.stream.sender import Sender

_End = TypeVar("_End", Sender, Receiver)


@dataclass
class Ends:
    """The ends of a block's connections, each by who has the other one.

    Attributes
    ----------
    block
        Index of the block.
    receivers, senders
        Of activations, and of what replicas of the block tell each other.
    publisher, subscriber
        Of the error broadcast: the head has the one, all others have the other.
    """

    block: int
    receivers: dict[Seat, Receiver] = field(default_factory=dict)
    senders: dict[Seat, Sender] = field(default_factory=dict)
    publisher: ErrorPublisher | None = None
    subscriber: ErrorSubscriber | None = None

    def split(self, ends: Mapping[Seat, _End]) -> tuple[list[_End], list[_End]]:
        """Return the ends of connections with other blocks, and with other replicas of this one."""
        others = [end for peer, end in ends.items() if peer.block != self.block]
        return others, [end for peer, end in ends.items() if peer.block == self.block]


class LinkCounts:
    """Reads the ends, in whatever thread asks."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._counting = threading.Lock()
        self._counted = TrafficCount(0, 0, 0)
        self._counted_tensors: Counter[tuple[str, str]] = Counter()

    def broadcast(self) -> TrafficCount:
        """Return what this block received of the error broadcast, or sent of it if it is the head."""
        end = self._ends.publisher or self._ends.subscriber
        return end.traffic.count() if end is not None else TrafficCount(0, 0, 0)

    def queues(self) -> dict[str, int]:
        """Return how much waits, or has passed, where."""
        found = {}
        names = ("activations not acknowledged", "shards of gradients not acknowledged")
        for name, senders in zip(names, self._ends.split(self._ends.senders), strict=True):
            if senders:
                found[name] = sum(sender.unacknowledged for sender in senders)
        if self._ends.subscriber is not None:
            found["errors received"] = self._ends.subscriber.received
        if self._ends.publisher is not None:
            found["errors published"] = self._ends.publisher.published
        return found

    def report_lags(self, metrics: BlockMetrics, topology: Topology) -> None:
        """In the head, let metrics read each subscriber's lag when they are asked; training pays nothing for it."""
        if self._ends.publisher is not None:
            for seat in topology.subscribers:
                metrics.lag(str(seat.block), str(seat.rank), partial(self._ends.publisher.lag, seat))

    def count_into(self, metrics: BlockMetrics) -> None:
        """Bring metrics up to the ends' own counts."""
        with self._counting:
            now = self.broadcast()
            messages, payload, wire = (
                after - before for after, before in zip(now, self._counted, strict=True)
            )
            metrics.broadcast("received" if self._ends.subscriber else "sent", messages, payload, wire)
            self._counted = now
            for direction, (others, siblings) in (
                ("sent", self._ends.split(self._ends.senders)),
                ("received", self._ends.split(self._ends.receivers)),
            ):
                metrics.activation(direction, self._new_bytes(direction, "activations", others))
                metrics.gradient(direction, self._new_bytes(direction, "gradients", siblings))

    def _new_bytes(self, direction: str, what: str, ends: Sequence[Sender | Receiver]) -> int:
        """Return the bytes of tensors that some ends have carried since they were last counted."""
        total = sum(end.traffic.count().payload_bytes for end in ends)
        new = total - self._counted_tensors[direction, what]
        self._counted_tensors[direction, what] = total
        return new
