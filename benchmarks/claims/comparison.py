"""Methods on networks side by side: all their runs, what they amount to, and when one matches another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from benchmarks.claims.claim import Result, RunSettings
from benchmarks.claims.methods import BACKPROP, READS_WEIGHTS, Method
from benchmarks.claims.settings import Setting
from benchmarks.claims.trials import Run, made, runs_of
from benchmarks.reporting import markdown_table, mean_and_spread

POINTS = 0.5
"""A gap between mean accuracies that counts as none, in percentage points, whatever the spread."""
STANDARD_ERRORS = 2
MOST_POINTS = 2.0
"""Standard errors that are more than this can't show that a method matches."""
CRITERION = (
    f"a method matches another where its mean test accuracy is behind by at most {POINTS} points, or by\n"
    f"  {STANDARD_ERRORS} standard errors of the difference, whichever is more (*limit* in the tables). Where these are "
    f"more than {MOST_POINTS:g} points, runs scatter\n  too much to tell."
)

Cell = tuple[Setting, Method]


class Configured(Protocol):
    """A method, of the claims or for blocks."""

    @property
    def label(self) -> str:
        """Its name in tables."""

    def configuration(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data."""


Scores = Sequence[float]


@dataclass(frozen=True)
class Gap:
    """How far a method is behind another, in percentage points; negative where it is ahead.

    ``noise`` has `STANDARD_ERRORS` of the difference.
    """

    points: float
    noise: float = 0.0

    @property
    def tolerance(self) -> float:
        """By how much it may be behind."""
        return min(MOST_POINTS, max(POINTS, self.noise))

    @property
    def matches(self) -> bool:
        """Whether it isn't behind by more than counts, and that can be told."""
        return self.points <= self.tolerance and self.noise <= MOST_POINTS

    @property
    def is_open(self) -> bool:
        """Whether it might match, and runs scatter too much to tell."""
        return self.points <= self.tolerance and not self.matches

    @property
    def in_words(self) -> str:
        """Whether it matches, for a table."""
        return "can't tell" if self.is_open else "yes" if self.matches else "no"

    def __str__(self) -> str:
        return f"{self.points:.2f}"


def gap_between(reference: Scores, scores: Scores) -> Gap:
    """Return how far scores are behind those of a reference."""
    points = statistics.fmean(reference) - statistics.fmean(scores)
    squares = [statistics.variance(one) / len(one) for one in (reference, scores) if len(one) > 1]
    return Gap(points, STANDARD_ERRORS * math.sqrt(sum(squares)))


def compare(cells: Iterable[Cell], settings: RunSettings) -> dict[str, Any]:
    """Make all runs, and return them with what decides them, as the plain data of a result."""
    chosen = list(cells)
    runs = made([partial(runs_of, setting, method) for setting, method in chosen], settings)
    return result_of([setting for setting, _ in chosen], [method for _, method in chosen], runs)


def result_of(
    networks: Iterable[Setting], methods: Iterable[Configured], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return runs with what decides them and what they amount to."""
    return {
        "configuration": {
            "networks": {network.label: network.configuration() for network in networks},
            "methods": {method.label: method.configuration() for method in methods},
        },
        "runs": [asdict(run) for run in runs],
        "summary": summarise(runs),
        "seconds": round(sum(run.seconds for run in runs), 1),
    }


def summarise(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Return, by network and method, what was chosen and the test accuracies with it, one for each seed."""
    summary: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.test is not None:
            chosen: dict[str, Any] = {"rate": run.rate, "weight_decay": run.weight_decay, "scores": []}
            if run.feedback_rate is not None:
                chosen["feedback_rate"] = run.feedback_rate
            entry = summary.setdefault(run.setting, {}).setdefault(run.method, chosen)
            entry["scores"].append(run.test)
            if run.best is not None:
                entry.setdefault("best", []).append(run.best)
            if run.curve:
                entry.setdefault("curves", []).append(run.curve)
    return summary


def scores_of(result: Result, setting: str, method: str) -> list[float]:
    """Return the test accuracies of a method, one for each seed."""
    scores: list[float] = result["summary"][setting][method]["scores"]
    return scores


def behind(result: Result, setting: str, method: str, reference: str = BACKPROP.label) -> Gap:
    """Return how far a method is behind another one on a network."""
    return gap_between(scores_of(result, setting, reference), scores_of(result, setting, method))


def epochs_to(result: Result, setting: str, method: str) -> float | None:
    """Return the first epoch with backpropagation's last accuracy less `POINTS`, both in validation, mean over seeds.

    None where a seed never has it, or where no curves are stored.
    """
    found = result["summary"][setting]
    curves, reference = (found[name].get("curves") for name in (method, BACKPROP.label))
    if not curves or not reference:
        return None
    goal = statistics.fmean(curve[-1] for curve in reference) - POINTS
    first = [next((n for n, value in enumerate(curve, 1) if value >= goal), None) for curve in curves]
    return None if None in first else statistics.fmean(n for n in first if n is not None)


def operations_to(result: Result, setting: str, method: str) -> float | None:
    """Return the operations until there, as a share of what backpropagation needs to come there itself, or None."""
    steps = result.get("operations", {}).get(setting, {})
    ours, theirs = (epochs_to(result, setting, name) for name in (method, BACKPROP.label))
    if ours is None or theirs is None or method not in steps:
        return None
    return ours * steps[method] / (theirs * steps[BACKPROP.label])


def mean_of(result: Result, setting: str, method: str) -> float:
    """Return the mean test accuracy."""
    return statistics.fmean(scores_of(result, setting, method))


def edge_of(result: Result, setting: str, method: str) -> str:
    """Return "lowest" or "highest" where that is what was chosen of a method's rates, and a better one may lie beyond."""
    rate: float = result["summary"][setting][method]["rate"]
    tried = {run["rate"] for run in result["runs"] if (run["setting"], run["method"]) == (setting, method)}
    if len(tried) < 2:
        return ""
    return "lowest" if rate == min(tried) else "highest" if rate == max(tried) else ""


def rate_of(result: Result, setting: str, method: str) -> str:
    """Return the rate that was chosen for a method, for a table, and whether it is the last of those that were tried."""
    edge = edge_of(result, setting, method)
    return f"{result['summary'][setting][method]['rate']:g}{edge and f' ({edge})'}"


def comparison_table(result: Result, setting: str) -> str:
    """Return one network's methods as a table, backpropagation's gap left empty."""
    found: Mapping[str, Any] = result["summary"][setting]
    has_best, has_feedback, has_curves = (
        any(key in entry for entry in found.values()) for key in ("best", "feedback_rate", "curves")
    )
    configured = result["configuration"]["methods"]
    rows = []
    for method, entry in found.items():
        gap = behind(result, setting, method)
        is_reference = method == BACKPROP.label
        epochs, share = (count(result, setting, method) for count in (epochs_to, operations_to))
        until = ["" if epochs is None else f"{epochs:.1f}", "" if share is None else f"{share:.2f}"]
        rows.append(
            (
                method,
                READS_WEIGHTS[configured[method]["rule"]],
                mean_and_spread(entry["scores"]),
                *([mean_and_spread(entry["best"]) if "best" in entry else ""] if has_best else []),
                "" if is_reference else str(gap),
                "" if is_reference else f"{gap.tolerance:.2f}",
                "" if is_reference else gap.in_words,
                *(until if has_curves else []),
                rate_of(result, setting, method),
                *(
                    [f"{entry['feedback_rate']:g}" if "feedback_rate" in entry else ""]
                    if has_feedback
                    else []
                ),
                f"{entry['weight_decay']:g}",
                str(len(entry["scores"])),
            )
        )
    header = (
        "errors go back by",
        "reads weights",
        "test accuracy (%)",
        *(["best epoch (%)"] if has_best else []),
        "gap",
        "limit",
        "matches",
        *(["epochs to there", "operations"] if has_curves else []),
        "rate",
        *(["feedback's rate"] if has_feedback else []),
        "decay",
        "seeds",
    )
    return markdown_table(header, rows)
