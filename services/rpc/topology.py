"""The topology of a run: its blocks, the data-parallel replicas of each, who works on what and who talks to whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lowdimfa.tickets import Ticket


class Seat(NamedTuple):
    """One process of a run.

    Attributes
    ----------
    block
        Index of its block.
    rank
        Which of the block's replicas it is, from 0.
    """

    block: int
    rank: int = 0

    def __str__(self) -> str:
        """Return the seat as the wire has it."""
        return f"{self.block}/{self.rank}"


class Topology:
    """All processes of a run and who talks to whom: block by block, and rank by rank within each.

    Parameters
    ----------
    replicas
        How many each block has, in order; the last one is the head, which has one.
    microbatches
        Of a step; a multiple of each of them. Micro-batch ``j`` is worked on by rank ``j mod replicas`` of each block.
    learning
        Indexes of the blocks that have something to learn; all by default.

    Attributes
    ----------
    seats
        In order; a worker's number is its place here.
    """

    def __init__(
        self, replicas: Sequence[int], microbatches: int, learning: Collection[int] | None = None
    ) -> None:
        self.replicas = tuple(replicas)
        self._microbatches = microbatches
        self._learning = range(len(self.replicas)) if learning is None else frozenset(learning)
        self.seats = [Seat(block, rank) for block, number in enumerate(replicas) for rank in range(number)]

    @property
    def head(self) -> Seat:
        """The seat of the head."""
        return self.seats[-1]

    @property
    def subscribers(self) -> list[Seat]:
        """The seats to which the head sends errors: those before it that have something to learn."""
        return [seat for seat in self.seats if seat != self.head and seat.block in self._learning]

    @property
    def leaders(self) -> list[int]:
        """Numbers of the workers of rank 0, one for each block in order: they stand for their block."""
        return [number for number, seat in enumerate(self.seats) if seat.rank == 0]

    def number(self, seat: Seat) -> int:
        """Return a worker's number."""
        return sum(self.replicas[: seat.block]) + seat.rank

    def name(self, seat: Seat) -> str:
        """Return a seat in words: ``block 1``, or ``block 1, replica 0`` where there are several."""
        words = f"block {seat.block}"
        return words if self.replicas[seat.block] == 1 else f"{words}, replica {seat.rank}"

    def worker(self, block: int, ticket: Ticket) -> Seat:
        """Return who works on a micro-batch, or on an evaluation batch, in a block."""
        return Seat(block, ticket.microbatch % self.replicas[block])

    def neighbours(self, seat: Seat, block: int) -> list[Seat]:
        """Return the seats of a block that share micro-batches with a seat."""
        own = range(seat.rank, self._microbatches, self.replicas[seat.block])
        return sorted({self.worker(block, Ticket(0, microbatch)) for microbatch in own})

    def siblings(self, seat: Seat) -> list[Seat]:
        """Return the other replicas of a seat's block."""
        ranks = range(self.replicas[seat.block])
        return [Seat(seat.block, rank) for rank in ranks if rank != seat.rank]

    def file_stem(self, seat: Seat) -> str:
        """Return how a seat's files are called: ``block-1``, or ``block-1-replica-2`` for those after rank 0."""
        return f"block-{seat.block}" if seat.rank == 0 else f"block-{seat.block}-replica-{seat.rank}"
