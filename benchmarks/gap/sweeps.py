"""Rules over one number, with one rate for all, so that a user can choose the number."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims.claim import Result, RunSettings
from benchmarks.claims.comparison import result_of, scores_of
from benchmarks.claims.figures import curve, level, number_axis
from benchmarks.claims.settings import Update, effort
from benchmarks.gap.networks import Network
from benchmarks.gap.rules import BACKPROP, Rule
from benchmarks.gap.trials import made_on, runs_with
from benchmarks.reporting import markdown_table, mean_and_spread

UPDATE = Update(2e-3)
"""One rate for all: a sweep shows a course, and chooses nothing."""

Line = tuple[str, dict[int, Rule]]
"""A rule over the swept number."""


@dataclass(frozen=True)
class Sweep:
    """Some rules on some networks over one number.

    Attributes
    ----------
    axis
        What the number is.
    points
        Its values.
    networks
        On which.
    lines
        Rules over the number.
    levels
        Rules that don't depend on it.
    minutes
        What it takes on one core with three seeds.
    """

    axis: str
    points: tuple[int, ...]
    networks: tuple[Network, ...]
    lines: tuple[Line, ...]
    levels: tuple[Rule, ...]
    minutes: float = 15.0

    def run(self, settings: RunSettings) -> dict[str, Any]:
        """Train everything."""
        work = effort(settings, self.minutes)
        networks = [replace(network.scaled(work), grid=(UPDATE,)) for network in self.networks]
        rules = [*self.levels, *(rule for _, line in self.lines for rule in line.values())]
        seeds = range(settings.seeds)
        tasks = [partial(runs_with, network, rule, UPDATE, seeds) for network in networks for rule in rules]
        return result_of(networks, rules, made_on(networks, tasks, settings))

    def tables(self, result: Result) -> str:
        """Return a table for each network: rules in rows, the number in columns."""
        parts = []
        for network in self.networks:
            rows = [
                (
                    rule.label,
                    *([mean_and_spread(scores_of(result, network.label, rule.label))] * len(self.points)),
                )
                for rule in self._levels(result, network)
            ]
            rows += [
                (
                    label,
                    *(
                        mean_and_spread(scores_of(result, network.label, line[point].label))
                        for point in self.points
                    ),
                )
                for label, line in self._lines(result, network)
            ]
            header = (f"test {network.score}, {self.axis}:", *map(str, self.points))
            parts.append(f"{network.label}:\n\n{markdown_table(header, rows)}")
        return "\n\n".join(parts)

    def draw(self, result: Result) -> Figure:
        """Draw one panel for each network."""
        panels = len(self.networks)
        figure = Figure(figsize=(10 if panels > 1 else 7, 4), layout="constrained")
        for axes, network in zip(figure.subplots(1, panels, squeeze=False).flat, self.networks, strict=True):
            self._panel(axes, result, network)
        return figure

    def _panel(self, axes: Axes, result: Result, network: Network) -> None:
        for rule in self._levels(result, network):
            level(axes, scores_of(result, network.label, rule.label), rule.label, color="0.3")
        for label, line in self._lines(result, network):
            scores = {point: scores_of(result, network.label, line[point].label) for point in self.points}
            curve(axes, scores, label)
        number_axis(axes, self.points, self.axis)
        axes.set_ylabel(f"test {network.score}")
        axes.set_title(network.label, fontsize=10)
        axes.legend(fontsize=8)

    def _levels(self, result: Result, network: Network) -> list[Rule]:
        """Return those that a result has: it may be of fewer."""
        found = result["summary"][network.label]
        return [rule for rule in self.levels if rule.label in found]

    def _lines(self, result: Result, network: Network) -> list[Line]:
        found = result["summary"][network.label]
        return [
            (label, line) for label, line in self.lines if all(rule.label in found for rule in line.values())
        ]

    def losses(self, result: Result, label: str, network: Network) -> dict[int, float]:
        """Return how far a line is behind backpropagation at every point, in points of accuracy."""
        reference = statistics.fmean(scores_of(result, network.label, BACKPROP.label))
        line = dict(self.lines)[label]
        return {
            point: reference - statistics.fmean(scores_of(result, network.label, line[point].label))
            for point in self.points
        }
