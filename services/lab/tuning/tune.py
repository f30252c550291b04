"""The course of a search: what is tried, in which order, and what is taken in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowdimfa.errors import StoppedError
from lowdimfa.services.lab.simulation.calibrate import Measured
from lowdimfa.services.lab.tuning.predict import Predictor
from lowdimfa.services.lab.tuning.search import PAIRS, Changes, Search, Tried, Verdict
from lowdimfa.services.lab.tuning.space import Space

MAIN, ALL = 0.45, 0.65
"""Parts of the time by which combinations, and then variations of the best of them, have been tried."""


@dataclass(frozen=True)
class Tuned:
    """What a search came to.

    Attributes
    ----------
    tried
        All that was measured or failed, the default first.
    leader
        What looked fastest, the default where nothing looked faster.
    verdict
        What segments of the two in turns say.
    untried
        Settings for which there was no time.
    stopped
        Whether somebody ended the search.
    """

    tried: list[Tried]
    leader: Tried
    verdict: Verdict
    untried: int
    stopped: bool

    @property
    def chosen(self) -> Tried:
        """The leader if it is faster by more than the noise, else the default."""
        return self.leader if self.verdict.faster else self.tried[0]

    def describe(self) -> dict[str, Any]:
        """Return it as plain data, the fastest setting first."""
        return {
            "settings": [_row(one) for one in sorted(self.tried, key=_standing)],
            "leader": dict(self.leader.changes),
            "ratios": list(self.verdict.ratios),
            "ratio": self.verdict.ratio,
            "noise": self.verdict.noise if self.verdict.ratios[PAIRS.start - 1 :] else None,
            "chosen": dict(self.chosen.changes),
            "untried": self.untried,
            "stopped": self.stopped,
        }


def tune(search: Search, space: Space, found: Sequence[Measured], times: Callable[[float], float]) -> Tuned:
    """Search for the fastest setting.

    Parameters
    ----------
    search
        Measures.
    space
        What may be tried.
    found
        What the simulator can learn of the segments; it grows as they are measured.
    times
        Returns when some part of the time that there is will be over, from 0 to 1.
    """
    leader, verdict, stopped = search.default, Verdict(()), False
    listed: list[Tried] = []
    try:
        search.run(search.default)
        first = found[0] if found else None
        listed += (main := [Tried(changes) for changes in space.main(first)])
        if (other := _other_size(main, space)) is not None:
            search.run(other)
        predict = _foretell(space, list(found))
        search.default.predicted = predict(search.default.changes)
        leader = search.best_of(_likely(main, predict, search.affordable(times(MAIN))), times(MAIN))
        listed += (further := [Tried(changes) for changes in space.variations(leader.changes, first)])
        # The last one to lead is rehearsed, which is taken to last as long as a segment.
        until = min(times(ALL), times(1) - search.cost_of_duel(leader) - search.cost)
        likely = _likely(further, predict, search.affordable(until))
        leader = search.best_of([*([] if leader is search.default else [leader]), *likely], until)
        if leader is not search.default:
            verdict = search.duel(leader)
            leader = search.default if leader.failure else leader
    except StoppedError:
        stopped = True
    untried = sum(not one.segments and not one.failure for one in listed)
    return Tuned(search.tried, leader, verdict, untried, stopped)


def _other_size(some: Iterable[Tried], space: Space) -> Tried | None:
    """Return what differs from the default in the size of micro-batches alone: it shows what depends on that."""
    present = space.specification.train.microbatches
    sizes = {
        one.changes["train.microbatches"]: one for one in some if [*one.changes] == ["train.microbatches"]
    }
    return sizes[min(sizes, key=lambda number: abs(number - (4 if present == 1 else 1)))] if sizes else None


def _foretell(space: Space, found: Sequence[Measured]) -> Callable[[Changes], float | None]:
    if not found:
        return lambda changes: None
    return Predictor(space.specification, space.plan, found, space.cores).rate


def _likely(some: list[Tried], predict: Callable[[Changes], float | None], most: int) -> list[Tried]:
    """Return those of which most is expected, as many as can be afforded."""
    for one in some:
        one.predicted = predict(one.changes)
    return sorted(some, key=lambda one: -(one.predicted or 0.0))[:most]


def _standing(tried: Tried) -> float:
    if tried.failure:
        return 0.0
    return -(tried.gain or 1.0 if not tried.changes else tried.gain or 0.0)


def _row(tried: Tried) -> dict[str, Any]:
    newest = tried.segments[-1] if tried.segments else None
    return {
        "changes": dict(tried.changes),
        "samples_per_second": tried.samples_per_second,
        "spread": tried.spread,
        "of_default": 1.0 if not tried.changes else tried.gain,
        "predicted": tried.predicted,
        "busy": None if newest is None or not newest.busy else min(newest.busy),
        "peak_bytes": None if newest is None else newest.peak_bytes,
        "segments": len(tried.segments),
        "failure": tried.failure or None,
    }
