"""The replicas of a block go through the end of each step together: whose messages are awaited, and what they become."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.summation import Layout, Summation
from lowdimfa.services.rpc.topology import Seat, Topology
from lowdimfa.services.stream.frames import Kind, Message
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket


class Shard(NamedTuple):
    """A message between replicas of a block: a part of a shard, or its sum."""

    rank: int
    message: Message


class Siblings(Protocol):
    """How a replica reaches the others of its block."""

    def send_shard(self, rank: int, kind: Kind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send a part or a sum to another replica."""

    def release_shard(self, shard: Shard) -> None:
        """Tell another replica that its message was used."""


class Exchange:
    """Adds up each step's gradients with the other replicas of a block.

    It never waits itself: what arrives is kept, also what is early, and `advance` says whose message is awaited.

    Parameters
    ----------
    stage
        The block.
    topology, seat
        All workers of the run, and which one this is.
    siblings
        Where messages go.
    """

    def __init__(self, stage: Stage, topology: Topology, seat: Seat, siblings: Siblings) -> None:
        self._layout = Layout(stage, topology.replicas[seat.block])
        self._topology, self._seat, self._siblings = topology, seat, siblings
        self._others = [other.rank for other in topology.siblings(seat)]
        self._early: dict[tuple[int, Kind, int], Shard] = {}
        self._step = 0
        self._summation: Summation | None = None

    def keep(self, shard: Shard) -> None:
        """Keep a message until its turn comes.

        Raises
        ------
        ProtocolError
            A second one of the same kind and step, or of another kind than there is between replicas.
        """
        kind, ticket = shard.message.kind, shard.message.ticket
        key = ticket.step, kind, shard.rank
        if kind not in ("part", "sum") or key in self._early:
            raise self._refused(shard, "it was not to come")
        self._early[key] = shard

    def begin(self, step: int, end: int) -> None:
        """Read the gradients of a step and send every other replica its part.

        Parameters
        ----------
        step
            Of which the gradients are.
        end
            The step before which the run of steps ends, as far as is known here.
        """
        self._step = step
        summation = self._summation = Summation(self._layout, self._seat.rank, end)
        for rank in self._others:
            self._siblings.send_shard(rank, "part", self._ticket, (summation.part(rank),))

    def advance(self) -> str | None:
        """Use what is here; return what is awaited, in words, or None when the block has the sum.

        Raises
        ------
        ProtocolError
            A message is not what the block's layers make it.
        """
        assert self._summation is not None, "begin comes first"
        for rank in self._summation.parts_missing:
            self._use(rank, "part")
        if missing := self._summation.parts_missing:
            return self._awaited(missing)
        if self._seat.rank in self._summation.sums_missing:
            total = self._summation.add_up()
            for rank in self._others:
                self._siblings.send_shard(rank, "sum", self._ticket, (total,))
        for rank in self._summation.sums_missing:
            self._use(rank, "sum")
        if missing := self._summation.sums_missing:
            return self._awaited(missing)
        return None

    def finish(self) -> int:
        """Give the block the sum; return the step before which rank 0 ends its run of steps."""
        assert self._summation is not None, "begin comes first"
        self._summation.finish()
        end, self._summation = self._summation.end, None
        return end

    def _use(self, rank: int, kind: Kind) -> None:
        shard = self._early.pop((self._step, kind, rank), None)
        if shard is None:
            return
        assert self._summation is not None
        take = self._summation.take_part if kind == "part" else self._summation.take_sum
        try:
            take(rank, shard.message.tensors[0])
        except ProtocolError as error:
            raise self._refused(shard, error.message) from error
        self._siblings.release_shard(shard)

    @property
    def _ticket(self) -> Ticket:
        return Ticket(self._step, 0)

    def _awaited(self, ranks: list[int]) -> str:
        names = " and ".join(self._topology.name(Seat(self._seat.block, rank)) for rank in ranks)
        return f"gradients of step {self._step} from {names}"

    def _refused(self, shard: Shard, why: str) -> ProtocolError:
        sender, step = Seat(self._seat.block, shard.rank), shard.message.ticket.step
        return ProtocolError(
            f"{self._topology.name(self._seat)} can't use the {shard.message.kind} of step {step} from "
            f"{self._topology.name(sender)}: {why}",
            block=self._seat.block,
            step=step,
        )
