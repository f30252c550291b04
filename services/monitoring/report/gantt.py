"""What each block did when, and what its time went into."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from lowdimfa.services.monitoring.report.reading import BUSY, CATEGORIES, Record, Spans
from lowdimfa.services.monitoring.report.recoveries import find_recoveries
from lowdimfa.services.monitoring.report.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    Picture,
    new_figure,
    quiet,
)

_COLOURS = {
    "forward": BLUE,
    "update": ORANGE,
    "step": GREEN,
    "probe": PURPLE,
    "send": SKY,
    "publish": YELLOW,
    "wait: activation": "#d3dfea",
    "wait: error": "#f3dccf",
    "wait: staleness": "#d5e6dd",
    "wait: window": "#e6e1ea",
    "wait: replica": "#ece8cf",
    "wait: data": "#ead3dd",
}
_REST: dict[str, Any] = {"facecolor": "#fafafa", "edgecolor": "#d2d2d2", "hatch": "////", "linewidth": 0}
"""How time looks that no span covers."""

_FORWARD = CATEGORIES.index("forward")
_FIRST_WAIT = next(code for code, category in enumerate(CATEGORIES) if category.startswith("wait"))

_BARS = 40
"""Bars per block that an excerpt may have and still be readable."""


class Excerpt(NamedTuple):
    """A stretch of the run: steps ``first`` to ``last``, from ``low`` to ``high`` unix seconds."""

    first: int
    last: int
    low: float
    high: float


def draw_timeline(record: Record) -> Picture | None:
    """Draw an excerpt from the middle of the run and every block's shares of time; nothing without spans."""
    spans, lasting = record.spans, record.lasting_spans()
    excerpt = choose_excerpt(lasting)
    if excerpt is None:
        return None
    rows = len(spans)
    figure = new_figure(2.4 + 0.62 * rows)
    top, bottom = figure.subplots(2, 1, height_ratios=[rows + 0.6, rows])
    _draw_excerpt(top, lasting, excerpt)
    _mark_recoveries(top, record, excerpt)
    begins = [event["time"] for event in record.events if event.get("event") == "started" and "time" in event]
    shares = np.array([time_shares(block, begins) for block in spans.values()])
    _draw_shares(bottom, shares)
    for axes in (top, bottom):
        axes.set_yticks(range(rows), [f"block {block}" for block in spans])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.spines["bottom"].set_visible(False)
    used = [category for code, category in enumerate(CATEGORIES) if shares[:, code].any()]
    handles = [Patch(color=_COLOURS[category], label=category) for category in used]
    handles.append(Patch(label="other", **_REST))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return Picture(figure, _caption(spans, shares, excerpt))


def choose_excerpt(spans: dict[int, Spans]) -> Excerpt | None:
    """Return a few steps near the middle of what all blocks recorded: of the longest piece of the run without a gap.

    Gaps are there where a process had recorded as many spans as it may, and the run went on in another one. Of the
    stretches around the middle it is the one of median length, so that an evaluation between two steps doesn't fill the
    picture.
    """
    if not spans:
        return None
    steps = reduce(np.intersect1d, [block.step[block.category == _FORWARD] for block in spans.values()])
    if not len(steps):
        return None
    piece = max(np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1), key=len)
    first, last = int(piece[0]), int(piece[-1])
    middle = (first + last) // 2
    bars = max(int(np.count_nonzero(block.step == middle)) for block in spans.values())
    count = int(np.clip(_BARS // max(1, bars), 1, min(4, last - first + 1)))
    starts = range(max(first, middle - 2 * count), min(last - count + 1, middle + 2 * count) + 1, count)
    stretches = sorted((_stretch(spans, start, start + count - 1) for start in starts), key=_length)
    return stretches[len(stretches) // 2]


def time_shares(block: Spans, begins: Sequence[float] = ()) -> NDArray[np.float64]:
    """Return the share of a block's recorded time that went into each of `CATEGORIES`.

    Parameters
    ----------
    block
        Its spans, at least one.
    begins
        When the parts of the run began, Unix seconds: what lies between two parts is nobody's time.
    """
    duration = np.bincount(block.category, block.end - block.start, minlength=len(CATEGORIES))
    # Sending may overlap computing, so that the parts can exceed the whole.
    whole = max(_recorded_seconds(block, begins), duration.sum())
    return np.asarray(duration / whole, dtype=np.float64)


def _recorded_seconds(block: Spans, begins: Sequence[float]) -> float:
    """Return how long a block recorded: without what lies between two parts, or steps of which it recorded nothing."""
    part = np.searchsorted(np.sort(begins), block.start, side="right")
    order = np.lexsort((block.start, part))
    reached = np.concatenate(
        [np.maximum.accumulate(block.step[order][part[order] == own]) for own in np.unique(part)]
    )
    gaps = (np.diff(reached) > 1) | (np.diff(part[order]) > 0)
    pieces = np.split(order, np.flatnonzero(gaps) + 1)
    return float(sum(block.end[piece].max() - block.start[piece].min() for piece in pieces))


def _stretch(spans: dict[int, Spans], first: int, last: int) -> Excerpt:
    inside = [
        block[(block.step >= first) & (block.step <= last) & (block.category < _FIRST_WAIT)]
        for block in spans.values()
    ]
    low = min(float(block.start.min()) for block in inside if len(block.start))
    high = max(float(block.end.max()) for block in inside if len(block.end))
    return Excerpt(first, last, low, high)


def _length(excerpt: Excerpt) -> float:
    return excerpt.high - excerpt.low


def _draw_excerpt(axes: Axes, spans: dict[int, Spans], excerpt: Excerpt) -> None:
    extent = _length(excerpt) * 1e3
    several = excerpt.last > excerpt.first
    for row, block in enumerate(spans.values()):
        axes.broken_barh([(0, extent)], (row - 0.36, 0.72), **_REST)
        shown = block[(block.end > excerpt.low) & (block.start < excerpt.high)]
        start = (np.maximum(shown.start, excerpt.low) - excerpt.low) * 1e3
        width = (np.minimum(shown.end, excerpt.high) - excerpt.low) * 1e3 - start
        for code, category in enumerate(CATEGORIES):
            bars = [(start[i], width[i]) for i in np.flatnonzero(shown.category == code)]
            edges = {"edgecolor": "white", "linewidth": 0.6} if code < _FIRST_WAIT else {"linewidth": 0}
            axes.broken_barh(bars, (row - 0.36, 0.72), facecolors=_COLOURS[category], **edges)
        numbers = shown.step if several else shown.microbatch
        roomy = width > 0.009 * extent * len(str(numbers.max()))
        for i in np.flatnonzero(roomy & (shown.category <= CATEGORIES.index("update"))):
            middle = start[i] + width[i] / 2
            axes.text(middle, row, str(numbers[i]), color="white", fontsize=7, ha="center", va="center")
    axes.set_xlim(0, extent)
    title = (
        f"Steps {excerpt.first} to {excerpt.last} (numbers: the step)"
        if several
        else f"Step {excerpt.first} (numbers: the micro-batch)"
    )
    quiet(axes, title, "milliseconds", "", grid="x")


def _mark_recoveries(axes: Axes, record: Record, excerpt: Excerpt) -> None:
    for began, ended in find_recoveries(record.events):
        low = max(began["time"], excerpt.low)
        high = min(ended.get("time", began["time"]), excerpt.high)
        if low < high:
            edges = ((low - excerpt.low) * 1e3, (high - excerpt.low) * 1e3)
            axes.axvspan(*edges, color="#eeeeee", linewidth=0)
            axes.text(sum(edges) / 2, 0, "recovery", color=MUTED, fontsize=8, ha="center", va="center")


def _draw_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    rows = np.arange(len(shares))
    left = np.zeros(len(shares))
    for code, category in enumerate(CATEGORIES):
        axes.barh(rows, shares[:, code], left=left, height=0.72, color=_COLOURS[category], linewidth=0)
        left += shares[:, code]
    axes.barh(rows, np.maximum(0, 1 - left), left=left, height=0.72, **_REST)
    for row, busy in enumerate(shares[:, BUSY].sum(axis=1)):
        axes.text(1.01, row, f"{busy:.0%} busy", fontsize=9, color=INK, va="center")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    quiet(axes, "Shares of the whole recorded time", "share of the block's time", "", grid="x")


def _caption(spans: dict[int, Spans], shares: NDArray[np.float64], excerpt: Excerpt) -> str:
    names = list(spans)
    busy = shares[:, BUSY].sum(axis=1)
    waits = shares[:, _FIRST_WAIT:]
    row, column = np.unravel_index(int(waits.argmax()), waits.shape)
    cause = CATEGORIES[_FIRST_WAIT + column].removeprefix("wait: ")
    return (
        "Strong colours are work, light ones waiting; hatched is everything else: evaluations, comparisons with the "
        "true gradient, checkpoints, recoveries, and what lies between two pieces of work. "
        f"Over the whole recorded time block {names[busy.argmax()]} was the busiest with {busy.max():.0%}, "
        f"block {names[busy.argmin()]} the least busy with {busy.min():.0%}, and the largest wait was block "
        f"{names[row]}'s (cause: {cause}, {waits.max():.0%})."
    )
