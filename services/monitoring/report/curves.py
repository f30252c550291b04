"""The learning curves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from lowdimfa.services.monitoring.report.reading import Record
from lowdimfa.services.monitoring.report.recoveries import mark_recoveries
from lowdimfa.services.monitoring.report.style import BLUE, GREEN, ORANGE, Picture, new_figure, quiet


def draw_curves(record: Record) -> Picture | None:
    """Draw loss, accuracy and throughput over the steps; return nothing where no progress was recorded."""
    steps, loss = record.series("progress", "loss")
    if not len(steps):
        return None
    with_accuracy = len(record.series("progress", "accuracy")[0]) > 0
    figure = new_figure(5.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 1])
    loss_axes = figure.add_subplot(grid[0, 0] if with_accuracy else grid[0, :])
    _learning(loss_axes, record, "loss", "test_loss")
    quiet(loss_axes, "Loss", "step", "loss per sample")
    if with_accuracy:
        axes = figure.add_subplot(grid[0, 1])
        _learning(axes, record, "accuracy", "test_accuracy")
        quiet(axes, "Accuracy", "step", "share of samples")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    loss_axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=9)

    axes = figure.add_subplot(grid[1, :])
    axes.plot(*record.series("progress", "samples_per_second"), color=GREEN, linewidth=1.2)
    axes.set_ylim(bottom=0)
    mark_recoveries(axes, record)
    quiet(axes, "Throughput", "step", "samples / s")
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
        axes.plot(*test, "o", color=ORANGE, markersize=6, markeredgecolor="white", label="test")
    mark_recoveries(axes, record)


def _caption(record: Record, loss: NDArray[np.float64]) -> str:
    caption = f"The training loss went from {loss[0]:.3g} to {loss[-1]:.3g} (smoothed; light: as reported)"
    evaluated = record.latest("evaluated")
    if not evaluated:
        return f"{caption}; no evaluation was recorded."
    caption += (
        f"; the last evaluation, after step {evaluated['step']}, gave a loss of {evaluated['test_loss']:.3g}"
    )
    if evaluated.get("test_accuracy") is not None:
        caption += f" and an accuracy of {evaluated['test_accuracy']:.2%}"
    return f"{caption}."
