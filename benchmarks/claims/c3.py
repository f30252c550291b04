"""C3: the error dimension that suffices, for subsets of the classes of CIFAR-10 and three widths, by each generation."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import Gap, behind, compare, scores_of
from benchmarks.claims.figures import LOOKS, curve, legend, level, number_axis
from benchmarks.claims.generations import OVERHEAD, TRIALS, fit, over, tables, with_backprop, with_grids
from benchmarks.claims.methods import BACKPROP, GENERATIONS, generation, generation_label
from benchmarks.claims.networks import fully_connected
from benchmarks.claims.settings import Setting
from benchmarks.claims.training import seconds_per_step

WIDTHS = (128, 512, 1024)
TRIED = {2: (1, 2, 4, 64), 5: (1, 2, 5, 10, 64), 10: (1, 4, 10, 20, 40, 64)}
"""Error dimensions by number of classes."""
SAMPLES_PER_CLASS, EPOCHS = 4_100, 10
SECOND = ("normative", "local")
UNTRIED = "A hundred classes (CIFAR-100) weren't tried."
FEW = 4
"""How many times the classes still follow the classes."""

Cell = tuple[int, int]
"""Width and classes."""
Sufficient = Mapping[Cell, int | None]


def setting_of(width: int, classes: int) -> Setting:
    """Return one of the networks."""
    return fully_connected(width, classes, SAMPLES_PER_CLASS * classes, EPOCHS)


def run(settings: RunSettings) -> dict[str, Any]:
    """Train all networks at all error dimensions by both generations, and by backpropagation."""
    networks = [setting_of(width, classes).on(settings.device) for width in WIDTHS for classes in TRIED]
    if settings.epochs is not None:
        networks = [replace(network, epochs=settings.epochs) for network in networks]
    share, cut = _share(networks, settings), list[str]()
    fitted = [with_grids(fit(network, share * network.steps, cut)) for network in networks]
    print("; ".join(cut) or "nothing was cut", file=sys.stderr, flush=True)
    cells = [
        (network, method)
        for network in fitted
        for method in with_backprop(over(tuple(GENERATIONS), TRIED[network.classes], network))
    ]
    return compare(cells, settings) | {"cut": cut}


def _share(networks: Sequence[Setting], settings: RunSettings) -> float:
    """Return the share of all work that the budget has, by steps that are measured."""
    if settings.budget_minutes is None:
        return 1.0
    seconds = 0.0
    for network in networks:
        runs = (1 + len(GENERATIONS) * len(TRIED[network.classes])) * (TRIALS + settings.seeds - 1)
        step = seconds_per_step(network, generation("local", 10, 10), settings.device)
        seconds += OVERHEAD * step * runs * network.steps
    return 60 * settings.budget_minutes / seconds


def gaps_of(result: Result, rule: str) -> dict[Cell, dict[int, Gap]]:
    """Return, by width and classes, how far every error dimension is behind backpropagation."""
    return {
        (width, classes): {
            r: behind(result, setting_of(width, classes).label, generation_label(rule, r)) for r in error_dims
        }
        for width in WIDTHS
        for classes, error_dims in TRIED.items()
    }


def sufficient(gaps: Mapping[int, Gap]) -> int | None:
    """Return the smallest error dimension from which on none is behind, or None."""
    found = None
    for r in sorted(gaps, reverse=True):
        if not gaps[r].matches:
            break
        found = r
    return found


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if by both new rules what suffices is at most 4 times the classes, grows with them, not with the width.

    Partly, if that holds by one of the two, or a part of it.
    """
    found: dict[str, Sufficient] = {
        rule: {cell: sufficient(gaps) for cell, gaps in gaps_of(result, rule).items()} for rule in GENERATIONS
    }
    shown = "; ".join(f"{GENERATIONS[rule]}: {_shown(one)}" for rule, one in found.items())
    reason = f"Smallest r that isn't behind backpropagation for {', '.join(map(str, TRIED))} classes, by width: {shown}."
    parts = {rule: (_few_times(found[rule]), _follows_classes(found[rule])) for rule in SECOND}
    if all(map(all, parts.values())):
        return "reproduced", reason
    return ("partly" if any(map(any, parts.values())) else "not reproduced"), reason


def _few_times(found: Sufficient) -> bool:
    return all(r is not None and r <= FEW * classes for (_, classes), r in found.items())


def _follows_classes(found: Sufficient) -> bool:
    """Whether ``r`` grows from the fewest classes to the most, falls nowhere, and isn't larger for more width."""
    rows = [[found[width, classes] or math.inf for classes in TRIED] for width in WIDTHS]
    if any(math.inf in row for row in rows):
        return False
    rises = all(sorted(row) == row and row[0] < row[-1] for row in rows)
    return rises and all(
        broad <= slim for narrow, wide in pairwise(rows) for slim, broad in zip(narrow, wide, strict=True)
    )


def _shown(found: Sufficient) -> str:
    rows = (
        f"{', '.join(str(found[width, classes] or 'none') for classes in TRIED)} ({width})"
        for width in WIDTHS
    )
    return ", ".join(rows)


def draw(result: Result) -> Figure:
    """Draw accuracy over ``r``, a panel for each number of classes and each width."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(len(WIDTHS), len(TRIED), sharey="col", squeeze=False)
    for row, width in zip(axes, WIDTHS, strict=True):
        for axis, (classes, error_dims) in zip(row, TRIED.items(), strict=True):
            name = setting_of(width, classes).label
            for number, (rule, label) in enumerate(GENERATIONS.items()):
                scores = {r: scores_of(result, name, generation_label(rule, r)) for r in error_dims}
                curve(axis, scores, label, color=f"C{number}")
            level(axis, scores_of(result, name, BACKPROP.label), BACKPROP.label, **LOOKS[BACKPROP.label])
            axis.axvline(classes, color="0.7", linewidth=6, alpha=0.4, zorder=0, label="r = classes")
            number_axis(axis, error_dims, "error dimension r" if width == WIDTHS[-1] else "")
            axis.set_title(f"{classes} classes, width {width}", fontsize=10)
        row[0].set_ylabel("test accuracy (%)")
    legend(axes[0, -1], fontsize=8, loc="lower right")
    return figure


CLAIM = Claim(
    name="C3",
    title="The error dimension that suffices follows the number of classes, not the width",
    run=run,
    draw=draw,
    judge=judge,
    tables=lambda result: f"{tables(result)}\n\n{UNTRIED}",
)
