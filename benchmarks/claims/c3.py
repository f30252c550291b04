"""C3: the error dimension that suffices, for subsets of the classes of CIFAR-10 and three widths, by each generation."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import Gap, behind, compare, scores_of
from benchmarks.claims.figures import LOOKS, curve, legend, level, number_axis
from benchmarks.claims.generations import OVERHEAD, TRIALS, fit, over, tables, with_backprop, with_grids
from benchmarks.claims.methods import BACKPROP, GENERATIONS, Method, generation, generation_label
from benchmarks.claims.networks import fully_connected
from benchmarks.claims.settings import Setting
from benchmarks.claims.training import seconds_per_step

Cell = tuple[int, int]
"""Width and classes."""


def _at(widths: Iterable[int], error_dims: Mapping[int, tuple[int, ...]]) -> dict[Cell, tuple[int, ...]]:
    return {(width, classes): tried for width in widths for classes, tried in error_dims.items()}


TRIED = _at((128, 512, 1024), {2: (1, 2, 4, 64), 5: (1, 2, 5, 10, 64), 10: (1, 4, 10, 20, 40, 64)})
"""Error dimensions of every network."""
CORE = _at((128, 512), {2: (1, 2, 4), 10: (4, 10, 20, 40)})
"""What a small budget has, of the second generation alone."""
SAMPLES_PER_CLASS, EPOCHS = 4_100, 10
SECOND = ("normative", "local")
UNTRIED = "A hundred classes (CIFAR-100) weren't tried."
FEW = 4
"""How many times the classes still follow the classes."""

Sufficient = Mapping[Cell, int | None]


def setting_of(width: int, classes: int) -> Setting:
    """Return one of the networks."""
    return fully_connected(width, classes, SAMPLES_PER_CLASS * classes, EPOCHS)


def run(settings: RunSettings) -> dict[str, Any]:
    """Train all networks at all error dimensions by both generations, and by backpropagation."""
    tried, rules = (CORE, SECOND) if settings.core else (TRIED, tuple(GENERATIONS))
    networks = {setting_of(*cell).on(settings.device): error_dims for cell, error_dims in tried.items()}
    if settings.epochs is not None:
        networks = {replace(one, epochs=settings.epochs): error_dims for one, error_dims in networks.items()}
    methods = {one: with_backprop(over(rules, error_dims, one)) for one, error_dims in networks.items()}
    share, cut = _share(methods, settings), list[str]()
    if settings.core:
        cut.append(f"only {len(networks)} of {len(TRIED)} networks, and the second generation")
    cells = [
        (fitted, method)
        for one, its in methods.items()
        for fitted in [with_grids(fit(one, share * one.steps, cut))]
        for method in its
    ]
    print("; ".join(cut) or "nothing was cut", file=sys.stderr, flush=True)
    return compare(cells, settings) | {"cut": cut}


def _share(methods: Mapping[Setting, Sequence[Method]], settings: RunSettings) -> float:
    """Return the share of all work that the budget has, by steps that are measured."""
    if settings.budget_minutes is None:
        return 1.0
    seconds = 0.0
    for network, its in methods.items():
        step = seconds_per_step(network, generation("local", 10, 10), settings.device)
        seconds += OVERHEAD * step * len(its) * (TRIALS + settings.seeds - 1) * network.steps
    return 60 * settings.budget_minutes / seconds


def gaps_of(result: Result, rule: str) -> dict[Cell, dict[int, Gap]]:
    """Return, by width and classes, how far every error dimension that was run is behind backpropagation."""
    found = {}
    for cell, error_dims in TRIED.items():
        name = setting_of(*cell).label
        labels = {r: generation_label(rule, r) for r in error_dims}
        its = {r: label for r, label in labels.items() if label in result["summary"].get(name, ())}
        if its:
            found[cell] = {r: behind(result, name, label) for r, label in its.items()}
    return found


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
    shown = "; ".join(f"{GENERATIONS[rule]}: {_shown(one)}" for rule, one in found.items() if one)
    classes = ", ".join(map(str, _axes(found[SECOND[0]])[1]))
    reason = f"Smallest r that isn't behind backpropagation for {classes} classes, by width: {shown}."
    parts = {rule: (_few_times(found[rule]), _follows_classes(found[rule])) for rule in SECOND}
    if all(map(all, parts.values())):
        return "reproduced", reason
    return ("partly" if any(map(any, parts.values())) else "not reproduced"), reason


def _few_times(found: Sufficient) -> bool:
    return all(r is not None and r <= FEW * classes for (_, classes), r in found.items())


def _follows_classes(found: Sufficient) -> bool:
    """Whether ``r`` grows from the fewest classes to the most, falls nowhere, and isn't larger for more width."""
    rows = _rows(found)
    if any(math.inf in row for row in rows):
        return False
    rises = all(sorted(row) == row and row[0] < row[-1] for row in rows)
    return rises and all(
        broad <= slim for narrow, wide in pairwise(rows) for slim, broad in zip(narrow, wide, strict=True)
    )


def _shown(found: Sufficient) -> str:
    widths, _ = _axes(found)
    rows = (["none" if r == math.inf else str(r) for r in row] for row in _rows(found))
    return ", ".join(f"{', '.join(row)} ({width})" for width, row in zip(widths, rows, strict=True))


def _axes(cells: Iterable[Cell]) -> tuple[list[int], list[int]]:
    """Return the widths and the numbers of classes."""
    widths, classes = zip(*cells, strict=True)
    return sorted({*widths}), sorted({*classes})


def _rows(found: Sufficient) -> list[list[float]]:
    """Return by width and classes what suffices."""
    widths, classes = _axes(found)
    return [[found[width, each] or math.inf for each in classes] for width in widths]


def draw(result: Result) -> Figure:
    """Draw accuracy over ``r``, a panel for each number of classes and each width."""
    gaps = {rule: gaps_of(result, rule) for rule in GENERATIONS}
    widths, numbers = _axes(gaps[SECOND[0]])
    figure = Figure(figsize=(1 + 3 * len(numbers), 2.5 * len(widths)), layout="constrained")
    axes = figure.subplots(len(widths), len(numbers), sharey="col", squeeze=False)
    for row, width in zip(axes, widths, strict=True):
        for axis, classes in zip(row, numbers, strict=True):
            name = setting_of(width, classes).label
            for number, (rule, label) in enumerate(GENERATIONS.items()):
                if its := gaps[rule].get((width, classes)):
                    scores = {r: scores_of(result, name, generation_label(rule, r)) for r in its}
                    curve(axis, scores, label, color=f"C{number}")
            level(axis, scores_of(result, name, BACKPROP.label), BACKPROP.label, **LOOKS[BACKPROP.label])
            axis.axvline(classes, color="0.7", linewidth=6, alpha=0.4, zorder=0, label="r = classes")
            error_dims = tuple(gaps[SECOND[0]][width, classes])
            number_axis(axis, error_dims, "error dimension r" if width == widths[-1] else "")
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
