"""Drawing that the claims share, and figures written so that the same data gives the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

PIXELS = 1000
"""Width of a figure; pages show it at 800 or less, and screens with fine pixels use the rest."""
COLOURS = 128


LOOKS: dict[str, dict[str, Any]] = {
    "backpropagation": {"color": "black"},
    "Kolen-Pollack, full": {"color": "C2", "linestyle": "--"},
    "sign symmetry": {"color": "C4", "linestyle": "-."},
    "greedy local loss": {"color": "C1", "linestyle": "--"},
    "feedback alignment": {"color": "C5", "linestyle": ":"},
    "direct feedback alignment": {"color": "C6", "linestyle": ":"},
}
"""The same method looks the same in all figures."""


def write_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Draw with matplotlib's own style whatever the user's is, and write a small PNG without date or version."""
    with matplotlib.rc_context(), style.context("default"):
        figure = draw()
        figure.set_dpi(PIXELS / figure.get_figwidth())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        picture = Image.fromarray(pixels[..., :3])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of the sample, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def level(axes: Axes, scores: Sequence[float], label: str, **look: Any) -> None:
    """Draw scores that don't depend on the axis as a line with a band of one standard deviation."""
    mean, spread = mean_spread(scores)
    shown: dict[str, Any] = {"linewidth": 1.4} | look
    line = axes.axhline(mean, label=label, **shown)
    if spread:
        axes.axhspan(mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)


def curve(axes: Axes, scores: Mapping[int, Sequence[float]], label: str, **look: Any) -> None:
    """Draw mean and standard deviation of scores over a numeric axis."""
    points = sorted(scores)
    means, spreads = zip(*(mean_spread(scores[point]) for point in points), strict=True)
    shown: dict[str, Any] = {"marker": "o", "capsize": 3} | look
    axes.errorbar(points, means, yerr=spreads, label=label, **shown)


def legend(axes: Axes, **look: Any) -> None:
    """Name what is drawn, curves before levels."""
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: isinstance(pair[0], Artist))
    axes.legend(*zip(*pairs, strict=True), frameon=False, **look)


def number_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Make the horizontal axis logarithmic, with the given values as its ticks."""
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(label)


def over_error_dim(
    axes: Axes, scores: Mapping[int, Sequence[float]], others: Mapping[str, Sequence[float]]
) -> None:
    """Draw the chain form's accuracy over ``r``, and methods without an ``r`` as levels."""
    curve(axes, scores, "chain form", color="C0", zorder=3)
    for label, found in others.items():
        level(axes, found, label, **LOOKS.get(label, {}))
    number_axis(axes, sorted(scores), "error dimension r")


def method_dots(summary: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw the accuracy of every method, seeds as dots, means as strokes, backpropagation's as a line."""
    figure = Figure(figsize=(8, 0.4 * len(summary) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(summary)[::-1]
    axes.axvline(statistics.fmean(summary[names[-1]]["scores"]), color="black", linewidth=1, linestyle="--")
    for place, name in enumerate(names):
        scores = summary[name]["scores"]
        mean, _ = mean_spread(scores)
        color = LOOKS.get(name, {}).get("color", "C0")
        axes.plot([mean, mean], [place - 0.28, place + 0.28], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(
            scores, [place] * len(scores), "o", color=color, markersize=6, alpha=0.55, markeredgewidth=0
        )
        axes.annotate(
            f"{mean:.1f}", (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=10
        )
    axes.margins(x=0.05)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure
