"""C3: the error dimension that suffices, for subsets of the classes of CIFAR-10 and two widths."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import Cell, Gap, behind, compare, comparison_table, scores_of
from benchmarks.claims.figures import legend, over_error_dim
from benchmarks.claims.methods import BACKPROP, chain
from benchmarks.claims.networks import ERROR_DIMS, MLP, fully_connected
from benchmarks.claims.settings import Setting, effort

MINUTES = 28.0
WIDTHS = (128, 512)
HIGH = 64
"""The error dimension whose accuracy lower ones are held against: no more than half of either width."""
TRIED = {2: (1, 2, HIGH), 5: (1, 2, 5, HIGH), 10: ERROR_DIMS}
"""Error dimensions by number of classes."""
SCHEDULES = {2: (8_000, 2), 5: (16_000, 2)}
"""Samples and epochs by number of classes; all of 10 classes have the schedule of C2, whose runs are used again."""


def setting_of(width: int, classes: int) -> Setting:
    """Return one of the networks."""
    return fully_connected(width, classes, *SCHEDULES.get(classes, (MLP.samples, MLP.epochs)))


def run(settings: RunSettings) -> dict[str, Any]:
    """Train all networks at all error dimensions, and by backpropagation."""
    share = effort(settings, MINUTES)
    cells: list[Cell] = []
    for width in WIDTHS:
        for classes, error_dims in TRIED.items():
            setting = setting_of(width, classes).on(settings.device).scaled(share)
            cells += [(setting, method) for method in (BACKPROP, *map(chain, error_dims))]
    return compare(cells, settings)


def gaps_of(result: Result, reference: str) -> dict[tuple[int, int], dict[int, Gap]]:
    """Return, by width and classes, how far every error dimension is behind a reference."""
    return {
        (width, classes): {
            r: behind(result, setting_of(width, classes).label, chain(r).label, reference) for r in error_dims
        }
        for width in WIDTHS
        for classes, error_dims in TRIED.items()
    }


def sufficient(gaps: dict[int, Gap]) -> int | None:
    """Return the smallest error dimension from which on none is behind, or None."""
    found = None
    for r in sorted(gaps, reverse=True):
        if not gaps[r].matches:
            break
        found = r
    return found


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if at both widths the ``r`` that suffices against backpropagation is above 0 and at most the classes.

    Partly, if that holds against the largest ``r`` instead, or if what suffices against it grows with the classes and
    doesn't grow with the width.
    """
    to_backprop = {cell: sufficient(gaps) for cell, gaps in gaps_of(result, BACKPROP.label).items()}
    to_high = {cell: sufficient(gaps) for cell, gaps in gaps_of(result, chain(HIGH).label).items()}
    reason = (
        f"Smallest sufficient r for {', '.join(map(str, TRIED))} classes, against r = {HIGH}: {_shown(to_high)}; "
        f"against backpropagation: {_shown(to_backprop)}. Of the rise from r = 1 to r = {HIGH}, r = classes has "
        f"{_recovered(result)}."
    )
    if _within_classes(to_backprop) and _follows_classes(to_backprop):
        return "reproduced", reason
    return ("partly" if _within_classes(to_high) or _follows_classes(to_high) else "not reproduced"), reason


def _within_classes(found: dict[tuple[int, int], int | None]) -> bool:
    return all(r is not None and r <= classes for (_, classes), r in found.items())


def _follows_classes(found: dict[tuple[int, int], int | None]) -> bool:
    """Whether ``r`` grows from the fewest classes to the most, falls nowhere, and isn't larger for more width."""
    narrow, wide = ([found[width, classes] or math.inf for classes in TRIED] for width in WIDTHS)
    if math.inf in (*narrow, *wide):
        return False
    rises = all(sorted(row) == row and row[0] < row[-1] for row in (narrow, wide))
    return rises and all(broad <= slim for slim, broad in zip(narrow, wide, strict=True))


def _recovered(result: Result) -> str:
    """Return the share of the rise from ``r = 1`` to `HIGH` that there is at ``r = classes``, where it rises at all."""
    shares = []
    for (width, classes), gaps in gaps_of(result, chain(HIGH).label).items():
        if not gaps[1].matches:
            share = 1 - gaps[classes].points / gaps[1].points
            shares.append(f"{share:.0%} ({classes} classes, width {width})")
    return ", ".join(shares) or "nothing to recover"


def _shown(found: dict[tuple[int, int], int | None]) -> str:
    rows = []
    for width in WIDTHS:
        values = ", ".join(str(found[width, classes] or "none") for classes in TRIED)
        rows.append(f"{values} (width {width})")
    return "; ".join(rows)


def tables(result: Result) -> str:
    """Return one table for each network."""
    return "\n\n".join(f"{name}:\n\n{comparison_table(result, name)}" for name in result["summary"])


def draw(result: Result) -> Figure:
    """Draw accuracy over ``r``, a panel for each number of classes and each width."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(len(WIDTHS), len(TRIED), sharey="col", squeeze=False)
    for row, width in zip(axes, WIDTHS, strict=True):
        for axis, (classes, error_dims) in zip(row, TRIED.items(), strict=True):
            name = setting_of(width, classes).label
            found = {r: scores_of(result, name, chain(r).label) for r in error_dims}
            over_error_dim(axis, found, {BACKPROP.label: scores_of(result, name, BACKPROP.label)})
            axis.axvline(classes, color="0.7", linewidth=6, alpha=0.4, zorder=0, label="r = classes")
            axis.set_title(f"{classes} classes, width {width}", fontsize=10)
            if width != WIDTHS[-1]:
                axis.set_xlabel("")
        row[0].set_ylabel("test accuracy (%)")
    legend(axes[0, -1], fontsize=8, loc="lower right")
    return figure


CLAIM = Claim(
    name="C3",
    title="The error dimension that suffices follows the number of classes, not the width",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
