"""A block's connections: its server, the stream from the block before, the stream to the one after, the errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from lowdimfa.block import ErrorKind
from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.activations import Activation, Kind, SampleLimit
from lowdimfa.services.block.exchange import Shard
from lowdimfa.services.block.faults import FaultInjector
from lowdimfa.services.block.inbox import Inbox
from lowdimfa.services.block.link_counts import Ends, LinkCounts
from lowdimfa.services.block.receiver import ActivationReceiver, as_it_came
from lowdimfa.services.block.torch_transport import Terminal, TorchReceiver, TorchSender, require_possible
from lowdimfa.services.block.transports import Transport, make_sender
from lowdimfa.services.broadcast.publisher import ErrorPublisher
from lowdimfa.services.broadcast.subscriber import ErrorSubscriber
from lowdimfa.services.rpc.handshake import HandshakeServicer, Hello, greet
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.server import RpcServer
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.tickets import Ticket

CLOSE_GRACE = 1.0
"""Seconds that open streams get to end in order."""

_CPU = torch.device("cpu")

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
    samples
        Most samples in one activation.
    windows
        Micro-batches in flight in one replica of each block.
    shard_bytes
        Size in bytes that no message between replicas of the block exceeds.
    security, host, liveness
        Secrets of the run, address to listen on, seconds of silence after which a peer counts as lost.
    inbox
        Gets activations, errors, and failures.
    faults
        What is to go wrong on the way here.
    transport
        How tensors travel to the next block and to replicas.
    device
        Where the block's tensors are.
    insecure
        Whether ``torch`` may be the transport between machines too.

    Attributes
    ----------
    address
        Where this block listens.
    ends, counts
        The ends of the connections, and what they have carried.

    Raises
    ------
    InputError
        The transport can't be used here.
    """

    def __init__(
        self,
        mine: Hello,
        topology: Topology,
        seat: Seat,
        samples: SampleLimit,
        windows: Sequence[int],
        shard_bytes: int,
        *,
        security: Security,
        host: str,
        liveness: float,
        inbox: Inbox,
        faults: FaultInjector,
        transport: Transport = "auto",
        device: torch.device = _CPU,
        insecure: bool = False,
    ) -> None:
        if transport == "torch":
            require_possible(host, insecure, device)
        self._terminal = Terminal(host, device, liveness, mine.block)
        self._mine, self._windows, self._liveness, self._host = mine, windows, liveness, host
        self._topology, self._seat, self._transport = topology, seat, transport
        self._output_limit = SampleLimit(
            mine.output.shape, getattr(torch, mine.output.dtype), samples.max_samples
        )
        self._shard_limit = SampleLimit((), torch.uint8, shard_bytes)
        self._security, self._inbox, self._faults = security, inbox, faults
        self.ends = Ends(mine.block)
        self.counts = LinkCounts(self.ends)
        # Each stream takes a thread, and each that brings activations a second one.
        threads = 3 * len(topology.seats) + 8
        self._server = RpcServer(topology.file_stem(seat), security, liveness, host, max_workers=threads)
        self._server.add(HandshakeServicer(mine))
        upstream = topology.neighbours(seat, mine.block - 1) if mine.block > 0 else []
        for peer in upstream:
            arriving = faults.frame_arrives if mine.role == "head" and peer == upstream[0] else as_it_came
            self._listen(peer, windows[peer.block], inbox.put, samples, arriving)
        for sibling in topology.siblings(seat):
            take = partial(self._shard_arrives, sibling.rank)
            self._listen(sibling, SHARD_WINDOW, take, self._shard_limit)
        if mine.role == "head" and topology.head.block > 0:
            self.ends.publisher = ErrorPublisher(mine.run, topology, self._errors_kept())
            self._server.add(self.ends.publisher)
        self._server.start()
        self.address: str = self._server.address

    def _listen(
        self,
        peer: Seat,
        window: int,
        take: Callable[[Activation], None],
        limit: SampleLimit,
        arriving: Callable[[bytes], Iterable[bytes]] = as_it_came,
    ) -> None:
        mine, failed = self._mine, self._inbox.abort

        def make(take: Callable[[Activation], None]) -> ActivationReceiver:
            return ActivationReceiver(
                mine.run, mine.block, peer.block, window, take, failed, arriving, peer_rank=peer.rank
            )

        receiver = TorchReceiver(make, self._terminal, take, failed) if self._by_torch(peer) else make(take)
        receiver.expect(*limit)
        self._server.add(receiver)
        self.ends.receivers[peer] = receiver

    def _shard_arrives(self, rank: int, message: Activation) -> None:
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
            greet(addresses[peer], self._security, mine, self._liveness)
        for sibling in siblings:
            self._reach(sibling, addresses[sibling], SHARD_WINDOW, self._shard_limit)
        if mine.role == "head":
            return
        self.ends.subscriber = ErrorSubscriber(
            addresses[topology.head],
            self._security,
            mine.run,
            mine.block,
            mine.error_dim,
            self._liveness,
            self._inbox.put,
            self._inbox.abort,
            self._faults.error_arrives,
            rank=seat.rank,
        )
        self.ends.subscriber.start()
        for peer in downstream:
            self._reach(peer, addresses[peer], self._windows[mine.block], self._output_limit)

    def _reach(self, peer: Seat, address: str, window: int, largest: SampleLimit) -> None:
        end = make_sender(
            self._transport,
            largest,
            address=address,
            host=self._host,
            security=self._security,
            run=self._mine.run,
            seat=self._seat,
            peer=peer,
            name=self._topology.name(peer),
            window=window,
            liveness=self._liveness,
            on_failure=self._inbox.abort,
        )
        sender = TorchSender(end, self._terminal) if self._by_torch(peer) else end
        self.ends.senders[peer] = sender  # before it starts, so that `close` ends it if that fails
        sender.start()

    def _by_torch(self, peer: Seat) -> bool:
        """Return whether tensors go to or come from a worker by `torch.distributed`; those of a replica never do."""
        return self._transport == "torch" and peer.block != self._seat.block

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        if self.ends.publisher is not None:
            self.ends.publisher.wait_for_subscribers(self._liveness)

    def send(self, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""
        self.ends.senders[self._topology.worker(self._seat.block + 1, ticket)].send(kind, ticket, tensors)

    def release(self, activation: Activation) -> None:
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

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Broadcast an error to all blocks; a head that is the only block has none to tell."""
        if self.ends.publisher is not None:
            self.ends.publisher.publish(ticket, kind, error)

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
