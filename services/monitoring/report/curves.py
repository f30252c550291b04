"""The learning curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from lowdimfa.services.monitoring.report.reading import Record
from lowdimfa.services.monitoring.report.recoveries import find_recoveries
from lowdimfa.services.monitoring.report.style import BLUE, GREEN, MUTED, ORANGE, Picture, new_figure, quiet


class _Curve(NamedTuple):
    key: str
    title: str
    label: str


_CURVES = (
    _Curve("loss", "Loss", "mean loss"),
    _Curve("perplexity", "Perplexity", "exp of the loss per token"),
    _Curve("accuracy", "Accuracy", "share of right predictions"),
)


def draw_curves(record: Record) -> Picture | None:
    """Draw loss, perplexity, accuracy and throughput over the steps; return nothing where no progress was recorded."""
    steps, loss = record.series("progress", "loss")
    if not len(steps):
        return None
    drawn = [one for one in _CURVES if len(record.series("progress", one.key)[0])]
    figure = new_figure(5.6)
    grid = figure.add_gridspec(2, len(drawn), height_ratios=[3, 1])
    for place, curve in enumerate(drawn):
        axes = figure.add_subplot(grid[0, place])
        _learning(axes, record, curve.key, f"test_{curve.key}")
        quiet(axes, curve.title, "step", curve.label)
        if curve.key == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if curve.key == "perplexity":
            _logarithmic(axes)
        if place == 0:
            axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=9)

    axes = figure.add_subplot(grid[1, :])
    tokens = record.series("progress", "tokens_per_second")
    speed, unit = (
        (tokens, "tokens") if len(tokens[0]) else (record.series("progress", "samples_per_second"), "samples")
    )
    axes.plot(*speed, color=GREEN, linewidth=1.2)
    axes.set_ylim(bottom=0)
    mark_recoveries(axes, record)
    quiet(axes, "Throughput", "step", f"{unit} / s")
    return Picture(figure, _caption(record, smooth(loss)))


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a centred moving average over a twentieth of the points, over fewer of them at the ends."""
    window = np.ones(2 * (len(values) // 40) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _learning(axes: Axes, record: Record, key: str, test_key: str) -> None:
    steps, values = record.series("progress", key)
    axes.plot(steps, values, color=BLUE, alpha=0.22, linewidth=0.9)
    axes.plot(steps, smooth(values), color=BLUE, linewidth=1.8, label="training, smoothed")
    test = record.series("evaluated", test_key)
    if len(test[0]):
        axes.plot(*test, "o", color=ORANGE, markersize=6, markeredgecolor="white", label=record.split)
    mark_recoveries(axes, record)


def mark_recoveries(axes: Axes, record: Record) -> None:
    """Draw a line at every step from which the run went on after a loss."""
    steps = sorted({recovery.ended["step"] for recovery in find_recoveries(record.events) if recovery.ended})
    for number, step in enumerate(steps):
        label = "_" if number else "recovery"  # one entry in the legend
        axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label=label)


def _logarithmic(axes: Axes) -> None:
    """Give an axis a logarithmic scale with plain numbers, as many as it has room for."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = range(1, 10) if high < 10 * low else (1, 3)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _caption(record: Record, loss: NDArray[np.float64]) -> str:
    caption = f"The training loss went from {loss[0]:.3g} to {loss[-1]:.3g} (smoothed; light: as reported)"
    evaluated = record.latest_step("evaluated")
    if not evaluated:
        return f"{caption}; no evaluation was recorded."
    caption += (
        f"; the last evaluation, of the {record.split} split after step {evaluated['step']}, "
        f"gave a loss of {evaluated['test_loss']:.3g}"
    )
    if evaluated.get("test_perplexity") is not None:
        caption += f", a perplexity of {evaluated['test_perplexity']:,.2f}"
    if evaluated.get("test_bits_per_byte") is not None:
        caption += f", {evaluated['test_bits_per_byte']:.3f} bits per byte"
    if evaluated.get("test_accuracy") is not None:
        caption += f" and an accuracy of {evaluated['test_accuracy']:.2%}"
    return f"{caption}."
