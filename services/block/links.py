"""A block's connections: its server, the stream from the block before, the stream to the one after, the errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.exchange import Shard
from lowdimfa.services.block.link_counts import Ends, LinkCounts
from lowdimfa.services.block.mailboxes import Inbox
from lowdimfa.services.rpc.handshake import HandshakeServicer, Hello, greet
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.stream.broadcast import ErrorPublisher, ErrorSubscriber
from lowdimfa.services.stream.carriers import Carrier
from lowdimfa.services.stream.frames import Kind, Message
from lowdimfa.services.stream.limits import ErrorLimit, SampleLimit
from lowdimfa.services.stream.receiver import Receiver
from lowdimfa.services.stream.resumable import Arriving, as_it_came
from lowdimfa.services.stream.sender import Sender
from lowdimfa.tickets import Ticket

CLOSE_GRACE = 1.0
"""Seconds that open streams get to end in order."""

SHARD_WINDOW = 4
"""Messages to a replica that may be unused at once: a step has two, and it may be a step behind."""


class Links:
    """All connections of one block, or of one replica of it. What its place in the network doesn't have is missing.

    Parameters
    ----------
    mine
        What the block says of itself to its neighbours.
    topology, seat
        All workers of the run, and which of them this is.
    limits
        What activations may be that arrive, and that leave.
    windows
        Micro-batches in flight in one replica of each block.
    shard_bytes
        Size in bytes that no message between replicas of the block exceeds.
    error_limit
        What errors may be.
    security
        Secrets of the run.
    carrier
        How tensors travel to the next block and to replicas. It knows the address to listen on, and the seconds of
        silence after which a peer counts as lost.
    inbox
        Gets activations, errors, and failures.
    arriving
        What the network makes of a frame on its way here.
    evaluating
        How many times as long as for a micro-batch a block may take for an evaluation batch.

    Attributes
    ----------
    address
        Where this block listens.
    ends, counts
        The ends of the connections, and what they have carried.
    patience
        Seconds after which a block gives a wait up: before what it waits for, all blocks may work one after the other,
        each on one thing for the liveness. The trainer, which sees all blocks, judges sooner.
    """

    def __init__(
        self,
        mine: Hello,
        topology: Topology,
        seat: Seat,
        limits: tuple[SampleLimit, SampleLimit],
        windows: Sequence[int],
        shard_bytes: int,
        error_limit: ErrorLimit,
        *,
        security: Security,
        carrier: Carrier,
        inbox: Inbox,
        arriving: Arriving = as_it_came,
        evaluating: float = 1.0,
    ) -> None:
        self._evaluating = evaluating
        liveness, host = carrier.here.liveness, carrier.here.host
        self._mine, self._windows, self._liveness = mine, windows, liveness
        self._topology, self._seat, self._carrier = topology, seat, carrier
        self.patience = (1 + len(topology.replicas)) * liveness
        arriving_limit, self._output_limit = limits
        self._shard_limit = SampleLimit.of((), torch.uint8, shard_bytes)
        self._error_limit = error_limit
        self._security, self._inbox, self._arriving = security, inbox, arriving
        self.ends = Ends(mine.block)
        self.counts = LinkCounts(self.ends)
        # Each stream takes a thread, and each that brings activations a second one.
        threads = 3 * len(topology.seats) + 8
        self._server = RpcServer(topology.file_stem(seat), security, liveness, host, max_workers=threads)
        self._server.add(HandshakeServicer(mine))
        upstream = topology.neighbours(seat, mine.block - 1) if mine.block > 0 else []
        for peer in upstream:
            at_head = mine.role == "head" and peer == upstream[0]
            arriving = self._arriving if at_head else as_it_came
            self._listen(peer, windows[peer.block], inbox.put, arriving_limit, arriving)
        for sibling in topology.siblings(seat):
            take = partial(self._shard_arrives, sibling.rank)
            self._listen(sibling, SHARD_WINDOW, take, self._shard_limit)
        if mine.role == "head" and topology.subscribers:
            self.ends.publisher = ErrorPublisher(mine.run, topology, self._errors_kept())
            self._server.add(self.ends.publisher)
        self._server.start()
        self.address: str = self._server.address

    def _listen(
        self,
        peer: Seat,
        window: int,
        take: Callable[[Message], None],
        limit: SampleLimit,
        arriving: Arriving = as_it_came,
    ) -> None:
        receiver = Receiver(
            self._mine.run,
            self._mine.block,
            peer.block,
            window,
            limit,
            take,
            self._inbox.abort,
            arriving,
            peer_rank=peer.rank,
            carrier=self._carrier_to(peer).downstream(window, limit),
        )
        self._server.add(receiver)
        self.ends.receivers[peer] = receiver

    def _shard_arrives(self, rank: int, message: Message) -> None:
        self._inbox.put(Shard(rank, message))

    def _errors_kept(self) -> int:
        """Return how many errors may lie between a subscriber's last one and the newest, and so may be asked for.

        The head waits for each replica's next micro-batch, of which a window's worth is in flight, with those of the
        other replicas between them. Each may have an error and a probe's response.
        """
        numbers = zip(self._topology.replicas, self._windows, strict=True)
        return 2 * max(replicas * window + replicas - 1 for replicas, window in numbers) + 2

    def connect(self, peers: list[str]) -> None:
        """Greet the neighbours and the head, subscribe to the errors, and open the streams to the next block.

        Parameters
        ----------
        peers
            gRPC addresses of all workers, in the order of the seats.
        """
        mine, topology, seat = self._mine, self._topology, self._seat
        addresses = dict(zip(topology.seats, peers, strict=True))
        downstream = [] if seat == topology.head else topology.neighbours(seat, mine.block + 1)
        siblings = topology.siblings(seat)
        greeted = {*self.ends.receivers, *downstream, *siblings, topology.head} - {seat}
        for peer in sorted(greeted):
            greet(addresses[peer], self._security, mine, self._liveness, topology.name(peer))
        for sibling in siblings:
            self._reach(sibling, addresses[sibling], SHARD_WINDOW, self._shard_limit)
        if seat in topology.subscribers:
            self._subscribe(addresses[topology.head])
        for peer in downstream:
            self._reach(peer, addresses[peer], self._windows[mine.block], self._output_limit)

    def _subscribe(self, head: str) -> None:
        mine = self._mine
        self.ends.subscriber = ErrorSubscriber(
            head,
            self._security,
            mine.run,
            self._seat,
            self._error_limit,
            self._liveness,
            self._inbox.put,
            self._inbox.abort,
            self._arriving,
        )
        self.ends.subscriber.start()

    def _reach(self, peer: Seat, address: str, window: int, limit: SampleLimit) -> None:
        sender = self.ends.senders[peer] = Sender(
            address,
            self._security,
            self._mine.run,
            self._mine.block,
            peer.block,
            window,
            self._liveness,
            self._inbox.abort,
            rank=self._seat.rank,
            name=self._topology.name(peer),
            carrier=self._carrier_to(peer).upstream(address, window, limit),
            patience=self._patience_for_room,
        )
        sender.start()

    @property
    def _patience_for_room(self) -> float:
        """Seconds to wait for room in a window: where nothing else holds a block back, as long as for an error."""
        paced = self._seat in (*self._topology.subscribers, self._topology.head)
        return self._liveness if paced else self.patience

    def _carrier_to(self, peer: Seat) -> Carrier:
        """Return what moves tensors to and from a worker; replicas' are in the host's memory."""
        siblings = peer.block == self._seat.block
        return Carrier(self._carrier.here) if siblings and self._carrier.direct else self._carrier

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        if self.ends.publisher is not None:
            self.ends.publisher.wait_for_subscribers(self._liveness)

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""
        # Nothing else holds a block back in an evaluation.
        times = self._evaluating * self.patience / self._patience_for_room if kind == "evaluate" else 1.0
        self.ends.senders[self._topology.worker(self._seat.block + 1, ticket)].send(
            kind, ticket, tensors, times
        )

    def release(self, activation: Message) -> None:
        """Tell the previous block that its activations were consumed."""
        self.ends.receivers[self._topology.worker(self._seat.block - 1, activation.ticket)].release(
            activation
        )

    def send_shard(self, rank: int, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send a part or a sum to another replica of the block."""
        self.ends.senders[Seat(self._seat.block, rank)].send(kind, ticket, tensors)

    def release_shard(self, shard: Shard) -> None:
        """Tell another replica of the block that its message was used."""
        self.ends.receivers[Seat(self._seat.block, shard.rank)].release(shard.message)

    def renew(self) -> None:
        """Have what may have been lost on its way here repeated; harmless if nothing was."""
        if self.ends.subscriber is not None:
            self.ends.subscriber.renew()
        for receiver in self.ends.receivers.values():
            receiver.renew()

    def drop(self) -> None:
        """Send no more activations: the block is to come to rest, and the next one may be lost."""
        for sender in self.ends.senders.values():
            sender.drop()

    def abort(self, error: LowdimfaError) -> None:
        """End a wait for room in the next block's window; nothing more can be sent then."""
        for sender in self.ends.senders.values():
            sender.abort(error)

    def publish(
        self, ticket: Ticket, kind: ErrorKind, error: Tensor, projection: Tensor | None = None
    ) -> None:
        """Broadcast an error to all blocks that learn from it; where none does, nobody is told."""
        if self.ends.publisher is not None:
            self.ends.publisher.publish(ticket, kind, error, projection)

    def close(self, grace: float = CLOSE_GRACE) -> None:
        """Close every connection, give open streams ``grace`` seconds to end in order, and join all threads."""
        for sender in self.ends.senders.values():
            sender.close()
        if self.ends.publisher is not None:
            self.ends.publisher.close()
        if self.ends.subscriber is not None:
            self.ends.subscriber.close()
        for receiver in self.ends.receivers.values():
            receiver.close()
        self._server.stop(grace)
