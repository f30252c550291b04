"""How much slower blocks compute while others on the same machine do, from a run's timeline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lowdimfa.services.monitoring.report.reading import BUSY, Spans

Values = NDArray[np.float64]

MOST = 4.0
"""What is above this is not contention but chance, in a timeline too short to tell."""


def company(spans: Mapping[int, Spans], cores: int) -> dict[int, Values]:
    """Return, for each span of each block, how busy the others kept the other cores meanwhile: 0 to 1 on average.

    Parameters
    ----------
    spans
        The timelines of all blocks of a machine, each in the order of time.
    cores
        That they share; at least 2.
    """
    found: dict[int, Values] = {}
    for block, own in spans.items():
        others = np.zeros(len(own.start))
        seconds = np.maximum(own.end - own.start, 1e-9)
        for index, other in spans.items():
            if index != block:
                others += (_busy_until(other, own.end) - _busy_until(other, own.start)) / seconds
        found[block] = np.minimum(others, cores - 1) / (cores - 1)
    return found


def estimate_contention(spans: Mapping[int, Spans], cores: int) -> float:
    """Return the ``contention`` that explains best how long the same work takes in more and in less company.

    A piece of work that takes ``d`` seconds in company ``x`` would take ``d (1 − κ x)`` alone, with
    ``κ = contention / (1 + contention)``. That has nothing to do with ``x`` any more if κ is right, which makes it the
    ratio of two covariances, added up over every kind of work of every block. It is 0 where company makes no
    difference, or there is none.

    Parameters
    ----------
    spans, cores
        As for `company`.
    """
    with_time = with_product = 0.0
    for block, beside in company(spans, cores).items():
        own = spans[block]
        for kind in BUSY:
            chosen = own.category == kind
            if chosen.sum() > 2:
                seconds, x = _typical((own.end - own.start)[chosen], beside[chosen])
                apart = (x - x.mean()) / seconds.mean()
                with_time += float((apart * seconds).sum())
                with_product += float((apart * seconds * x).sum())
    share = with_time / with_product if with_product > 0 else 0.0
    share = min(max(share, 0.0), MOST / (1 + MOST))
    return share / (1 - share)


def slowdown(contention: float, beside: Values) -> Values:
    """Return how many times as long work takes in given company."""
    return 1 / (1 - contention / (1 + contention) * beside)


def _busy_until(spans: Spans, times: Values) -> Values:
    """Return the seconds that a block had computed at given times."""
    busy = np.isin(spans.category, BUSY)
    start, end = spans.start[busy], spans.end[busy]
    done = np.cumsum(end - start)
    edges = np.stack([start, end], axis=1).ravel()
    levels = np.stack([np.concatenate([[0.0], done[:-1]]), done], axis=1).ravel()
    return np.interp(times, edges, levels) if len(edges) else np.zeros(len(times))


def _typical(seconds: Values, beside: Values) -> tuple[Values, Values]:
    """Leave out what took far longer than usual: it was held up by something else."""
    kept = seconds <= 2 * np.median(seconds)
    return seconds[kept], beside[kept]
