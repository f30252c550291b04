"""The look that the pictures share: a palette that colour-blind people can read, and quiet axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#333333"
MUTED = "#767676"
GRID = "#e6e6e6"
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Okabe and Ito's colours."""


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that says what it shows."""

    figure: Figure
    caption: str

    def png(self) -> bytes:
        """Return the figure as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(height: float) -> Figure:
    """Return an empty figure, 10 inches wide; it needs no display and touches no global state."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(10, height), dpi=150, layout=layout, facecolor="white")


def quiet(axes: Axes, title: str, xlabel: str, ylabel: str, *, grid: str = "y") -> None:
    """Give axes a title and labels, and take away what carries no information."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]


def ordered_colours(count: int) -> Sequence[tuple[float, float, float, float]]:
    """Return colours from dark to light for things that have an order, such as blocks."""
    colours = colormaps["viridis"]
    return [colours(0.9 * index / max(1, count - 1)) for index in range(count)]
