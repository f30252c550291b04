"""Which of several settings is the fastest, on a machine whose speed may change while they are measured.

Nothing here starts a process or has a clock of its own: what measures and what tells the time are given. Every setting
is compared with the default as it was around that time, never with a rate of some minutes ago.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from lowdimfa.errors import LowdimfaError, StoppedError

Changes = Mapping[str, Any]
"""Settings by key, such as ``train.window``, that differ from the specification's; none for the default."""

WORTHWHILE = 0.02
"""Share by which a setting has to be faster than the default to take its place."""

HOPELESS = 0.7
"""Part of the leader's rate below which a setting is dropped at once."""

EVERY = 3
"""Settings that are measured between two measurements of the default."""

PAIRS = range(3, 9)
"""How many pairs of segments decide between the default and the leader, fewest and one more than most."""

_QUANTILES = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89)
"""Student's t for 95 %, one-sided, by degrees of freedom from 1."""


@dataclass(frozen=True)
class Segment:
    """What a short piece of a run came to.

    Attributes
    ----------
    samples_per_second
        In its steady state.
    busy
        Share of the time in which each block didn't wait.
    peak_bytes
        Memory of the largest block's process; None where that can't be seen.
    """

    samples_per_second: float
    busy: tuple[float, ...] = ()
    peak_bytes: int | None = None


@dataclass(eq=False)
class Tried:
    """A setting and what it came to.

    Attributes
    ----------
    changes
        See `Changes`.
    predicted
        The simulator's samples per second, where it can tell.
    segments
        In the order in which they were measured.
    gains
        Of the segments of the search: logarithms of the rate over the default's at the same time.
    failure
        Why it can't be had; empty where it can.
    rehearsed
        Whether a run with it would begin.
    """

    changes: Changes
    predicted: float | None = None
    segments: list[Segment] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    failure: str = ""
    rehearsed: bool = False

    @property
    def samples_per_second(self) -> float | None:
        """Median over the segments."""
        return median(one.samples_per_second for one in self.segments) if self.segments else None

    @property
    def spread(self) -> float | None:
        """Half of the range of the segments' rates, in samples per second; None for a single one."""
        rates = [one.samples_per_second for one in self.segments]
        return (max(rates) - min(rates)) / 2 if len(rates) > 1 else None

    @property
    def gain(self) -> float | None:
        """Rate over the default's at the same time; None where it wasn't measured."""
        return math.exp(median(self.gains)) if self.gains else None


@dataclass(frozen=True)
class Verdict:
    """What segments of the default and of the leader in turns say.

    Attributes
    ----------
    ratios
        Of each pair, the leader's rate over the default's.
    """

    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Geometric mean of the ratios; 1 where there are none."""
        return math.exp(fmean(map(math.log, self.ratios))) if self.ratios else 1.0

    @property
    def noise(self) -> float:
        """How much lower than `ratio` the true one may be, with 95 % certainty; infinite for too few pairs."""
        number = len(self.ratios)
        if number < PAIRS.start:
            return math.inf
        error = stdev(map(math.log, self.ratios)) / math.sqrt(number)
        return self.ratio * -math.expm1(-_QUANTILES[number - 2] * error)

    @property
    def faster(self) -> bool:
        """Whether the leader is faster by more than the noise, and by enough to matter."""
        return self.ratio - self.noise > 1 and self.ratio > 1 + WORTHWHILE


class Search:
    """Measures settings until one is left, or the time is over.

    Parameters
    ----------
    measure
        Trains a segment with some changes. What it raises makes the setting one that can't be had; of the default, and
        where it is a `StoppedError`, it ends the search.
    clock
        Tells the time in seconds.
    until
        When the search is to be over. No segment begins that is expected to end later.
    on_segment
        Told of each segment.
    rehearse
        Raises what a run with some changes would be refused for, though a segment of it can be trained.

    Attributes
    ----------
    default
        The specification as it is.
    tried
        All settings that were measured, or failed, in that order.
    """

    def __init__(
        self,
        measure: Callable[[Changes], Segment],
        clock: Callable[[], float],
        until: float,
        on_segment: Callable[[Tried], None] = lambda tried: None,
        rehearse: Callable[[Changes], None] = lambda changes: None,
    ) -> None:
        self._measure, self._clock, self._until, self._on_segment = measure, clock, until, on_segment
        self._rehearse = rehearse
        self._costs: dict[int, list[float]] = {}
        self._rounds = 0
        self.default = Tried({})
        self.tried = [self.default]

    @property
    def cost(self) -> float:
        """Seconds that a segment takes with its start, as far as is known."""
        return median(one for some in self._costs.values() for one in some) if self._costs else 0.0

    def cost_of_duel(self, leader: Tried, pairs: int = PAIRS.start) -> float:
        """Return the seconds that some pairs of the default and a leader take."""
        return pairs * sum(max(self._costs.get(id(one), [self.cost])) for one in (self.default, leader))

    def run(self, tried: Tried) -> Segment | None:
        """Measure a segment of a setting; return None where it fails."""
        began = self._clock()
        if tried not in self.tried:
            self.tried.append(tried)
        try:
            segment = self._measure(tried.changes)
        except StoppedError:
            raise
        except LowdimfaError as error:
            if tried is self.default:
                raise
            tried.failure = error.message
            return None
        finally:
            self._costs.setdefault(id(tried), []).append(self._clock() - began)
        tried.segments.append(segment)
        self._on_segment(tried)
        return segment

    def affordable(self, until: float) -> int:
        """Return how many settings can be halved down to one by a time: each round costs half of the one before."""
        return math.floor(max(0.0, until - self._clock()) / max(self.cost, 1e-9) / (2 * (1 + 1 / EVERY)))

    def best_of(self, candidates: Sequence[Tried], until: float) -> Tried:
        """Return the fastest by successive halving, the default if that is faster than all.

        Each round measures what is left, in turns with the default, and keeps the faster half. What a run would be
        refused for gives its place to the next best.
        """
        left, complete = list(candidates), True
        while left and complete:
            complete = self._round(left, until)
            left = [one for one in left if one.gains and not one.failure]
            left.sort(key=lambda one: median(one.gains), reverse=True)
            if len(left) < 2:
                break
            if complete:
                least = median(left[0].gains) + math.log(HOPELESS)
                left = [one for one in left[: math.ceil(len(left) / 2)] if median(one.gains) >= least]
                complete = len(left) > 1
        if not left or median(left[0].gains) <= 0:
            return self.default
        dropped = [one for one in candidates if one.gains and one not in left]
        dropped.sort(key=lambda one: (len(one.gains), median(one.gains)), reverse=True)
        ahead = (one for one in (*left, *dropped) if median(one.gains) > 0)
        return next((one for one in ahead if self._begins(one)), self.default)

    def duel(self, leader: Tried) -> Verdict:
        """Measure the default and the leader in turns, in pairs whose order changes."""
        ratios: list[float] = []
        while len(ratios) < PAIRS.stop - 1 and self._clock() + self.cost_of_duel(leader, 1) <= self._until:
            pair = [self.default, leader] if len(ratios) % 2 else [leader, self.default]
            rates = {id(one): self.run(one) for one in pair}
            ours, theirs = rates[id(leader)], rates[id(self.default)]
            if ours is None or theirs is None:
                return Verdict(())
            ratios.append(ours.samples_per_second / theirs.samples_per_second)
        return Verdict(tuple(ratios))

    def _begins(self, tried: Tried) -> bool:
        """Return whether a run with a setting would begin, as a rehearsal in the time that is left says."""
        if not (tried.rehearsed or tried.failure or self._clock() > self._until):
            try:
                self._rehearse(tried.changes)
                tried.rehearsed = True
            except StoppedError:
                raise
            except LowdimfaError as error:
                tried.failure = error.message
        return tried.rehearsed and not tried.failure

    def _has_time(self, until: float, segments: int = 1) -> bool:
        return self._clock() + segments * self.cost <= until

    def _round(self, left: Sequence[Tried], until: float) -> bool:
        """Measure each setting once, the default before, between and after; return whether all had their turn."""
        order = list(left)[:: -1 if self._rounds % 2 else 1]
        self._rounds += 1
        if not self._has_time(until, 2):
            return False
        marks, found, complete = [self._mark()], [], True
        for index, one in enumerate(order):
            if not self._has_time(until, 2):
                complete = False
                break
            began = self._clock()
            segment = self.run(one)
            if segment is not None:
                found.append((one, (began + self._clock()) / 2, math.log(segment.samples_per_second)))
            if (index + 1) % EVERY == 0 or index + 1 == len(order):
                marks.append(self._mark())
        if not complete and found and self._has_time(until):
            marks.append(self._mark())
        times, rates = zip(*marks, strict=True)
        for one, when, rate in found:
            one.gains.append(rate - float(np.interp(when, times, rates)))
        return complete

    def _mark(self) -> tuple[float, float]:
        """Measure the default; return when, and the logarithm of its rate."""
        began = self._clock()
        segment = self.run(self.default)
        assert segment is not None  # its failure is raised
        return (began + self._clock()) / 2, math.log(segment.samples_per_second)
