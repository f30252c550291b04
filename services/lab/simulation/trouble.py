"""What goes wrong in simulated time: blocks that are slow for a while, and blocks that are lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lowdimfa.errors import InputError


@dataclass(frozen=True)
class Slowdown:
    """A block that computes slower for a while.

    Attributes
    ----------
    block
        Its index.
    begin, seconds
        From when, and for how long, in simulated seconds.
    factor
        How many times as long work takes meanwhile.
    """

    block: int
    begin: float
    seconds: float
    factor: float


@dataclass(frozen=True)
class Loss:
    """The end of a block's process, at a simulated time in seconds."""

    block: int
    at: float


@dataclass(frozen=True)
class Trouble:
    """All that goes wrong, and how a run comes back from it.

    Attributes
    ----------
    seconds
        How long the run is looked at, from its start.
    slow, lost
        What happens, in the order of time.
    recovery
        Seconds from a loss until the lost block's process is back and connected.
    checkpoint_every
        Steps between two checkpoints, which take no time.
    rejoin
        Whether this method goes on with the state that the other blocks have. Otherwise, and in backpropagation
        always, every block goes back to the last checkpoint.
    """

    seconds: float
    slow: tuple[Slowdown, ...] = ()
    lost: tuple[Loss, ...] = ()
    recovery: float = 8.0
    checkpoint_every: int = 100
    rejoin: bool = True

    def check(self, blocks: int) -> None:
        """Refuse what makes no sense for so many blocks.

        Raises
        ------
        InputError
            A time or a factor is out of range, or there is no such block.
        """
        positive = 0 < self.seconds < math.inf
        named = {one.block for one in self.slow} | {one.block for one in self.lost}
        rules = [
            ("seconds", self.seconds, positive, "more than 0 seconds"),
            ("recovery", self.recovery, 0 <= self.recovery < math.inf, "0 seconds or more"),
            (
                "checkpoint_every",
                self.checkpoint_every,
                self.checkpoint_every >= 1,
                "an integer of at least 1",
            ),
            ("block", sorted(named), named <= set(range(blocks)), f"blocks from 0 to {blocks - 1}"),
        ]
        rules += [
            (
                "slowdown",
                one,
                one.begin >= 0 and one.seconds > 0 and one.factor >= 1,
                "a factor of at least 1",
            )
            for one in self.slow
        ]
        for name, found, valid, expected in rules:
            if not valid:
                raise InputError(name, str(found), expected)


def uneven(blocks: int, spread: float, seed: int) -> tuple[float, ...]:
    """Return how many times as long each block takes: drawn evenly from 1 to ``1 + spread``."""
    random = Random(f"uneven {seed}")
    return tuple(1 + spread * random.random() for _ in range(blocks))


def draw_slowdowns(
    blocks: int, seconds: float, every: float, lasting: float, factor: float, seed: int
) -> tuple[Slowdown, ...]:
    """Return slowdowns of so many seconds each, with ``every`` seconds between those of one block on average."""
    found = []
    for block in range(blocks):
        random, now = Random(f"slow {seed} {block}"), 0.0
        while (now := now + random.expovariate(1 / every)) < seconds:
            found.append(Slowdown(block, now, lasting, factor))
            now += lasting
    return tuple(sorted(found, key=lambda one: one.begin))


def draw_losses(blocks: int, seconds: float, every: float, seed: int) -> tuple[Loss, ...]:
    """Return losses, with ``every`` seconds between those of one block on average."""
    found = []
    for block in range(blocks):
        random, now = Random(f"lost {seed} {block}"), 0.0
        while (now := now + random.expovariate(1 / every)) < seconds:
            found.append(Loss(block, now))
    return tuple(sorted(found, key=lambda one: one.at))


class Pace:
    """How fast one block computes, over time.

    Parameters
    ----------
    slow
        Its slowdowns in the order of their begins. Where one begins before the last has ended, it counts from there, if
        it lasts longer.
    """

    def __init__(self, slow: Sequence[Slowdown]) -> None:
        self._slow = slow
        self._next = 0  # what is before is over

    def seconds(self, begin: float, work: float) -> float:
        """Return how long work takes that begins now and would take ``work`` seconds; begins never go back."""
        slow, now = self._slow, begin
        while self._next < len(slow) and slow[self._next].begin + slow[self._next].seconds <= begin:
            self._next += 1
        for one in slow[self._next :]:
            if now + work <= one.begin:
                break
            if now < one.begin:
                work -= one.begin - now
                now = one.begin
            span = one.begin + one.seconds - now
            if span <= 0:  # it was over before another one that had begun earlier
                continue
            if work * one.factor <= span:
                return now + work * one.factor - begin
            work -= span / one.factor
            now += span
        return now + work - begin
