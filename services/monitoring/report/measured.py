"""The user's own metrics over the evaluations."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from lowdimfa.services.monitoring.report.curves import mark_recoveries
from lowdimfa.services.monitoring.report.reading import Record
from lowdimfa.services.monitoring.report.style import ORANGE, Picture, new_figure, ordered_colours, quiet

ACROSS = 3
"""Metrics beside each other."""

MOST_NAMED = 10
"""Classes whose lines have their number at the end; of more, one sees the spread."""


def draw_metrics(record: Record) -> Picture | None:
    """Draw each metric over the steps, one line for each class; return nothing where none was measured."""
    values = {
        step: event["metrics"] for step, event in record.by_step("evaluated").items() if event.get("metrics")
    }
    names = list(dict.fromkeys(name for metrics in values.values() for name in metrics))
    if not names:
        return None
    rows = -(-len(names) // ACROSS)
    figure = new_figure(2.8 * rows)
    grid = figure.add_gridspec(rows, min(ACROSS, len(names)))
    for place, name in enumerate(names):
        axes = figure.add_subplot(grid[place // ACROSS, place % ACROSS])
        _draw(axes, {step: metrics[name] for step, metrics in values.items() if name in metrics})
        mark_recoveries(axes, record)
        quiet(axes, name, "step", "")
    return Picture(
        figure, f"Over the whole evaluation; after step {max(values)}: {_latest(values[max(values)])}."
    )


def _draw(axes: Axes, values: dict[int, Any]) -> None:
    lines: dict[int, tuple[list[int], list[float]]] = {}
    for step, value in values.items():
        for index, number in enumerate(value if isinstance(value, list) else [value]):
            if number is not None:
                steps, numbers = lines.setdefault(index, ([], []))
                steps.append(step)
                numbers.append(number)
    colours = [ORANGE] if len(lines) == 1 else ordered_colours(len(lines))
    for (index, line), colour in zip(sorted(lines.items()), colours, strict=True):
        axes.plot(*line, "o-", color=colour, markersize=4, linewidth=1.2)
        if 1 < len(lines) <= MOST_NAMED:
            end = line[0][-1], line[1][-1]
            axes.annotate(str(index), end, (5, -3), textcoords="offset points", color=colour, fontsize=8)


def _latest(metrics: dict[str, Any]) -> str:
    said = []
    for name, value in metrics.items():
        numbers = [each for each in (value if isinstance(value, list) else [value]) if each is not None]
        if numbers:
            spread = f"{min(numbers):.4g} to {max(numbers):.4g}" if len(numbers) > 1 else f"{numbers[0]:.4g}"
            said.append(f"{name} {spread}")
    return ", ".join(said) or "none is a finite number"
