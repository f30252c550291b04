"""C2: a fully connected network on CIFAR-10 over the error dimension, and the other rules beside it."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import behind, compare, comparison_table, mean_of, scores_of
from benchmarks.claims.figures import LOOKS, curve, legend, number_axis, over_error_dim
from benchmarks.claims.methods import (
    BACKPROP,
    FEEDBACK_ALIGNMENT,
    KOLEN_POLLACK,
    LOCAL,
    SIGN_SYMMETRY,
    chain,
    direct_feedback_alignment,
)
from benchmarks.claims.networks import ERROR_DIMS, LONG, MLP
from benchmarks.claims.settings import effort

MINUTES = 37.0
ENOUGH = 10
"""The error dimension that the paper says suffices: the number of classes."""
OTHERS = (
    KOLEN_POLLACK,
    SIGN_SYMMETRY,
    LOCAL,
    FEEDBACK_ALIGNMENT,
    direct_feedback_alignment(10),
)
LONGER = (BACKPROP, chain(ENOUGH), KOLEN_POLLACK)
"""Methods that are trained for longer too."""


def run(settings: RunSettings) -> dict[str, Any]:
    """Train the network by every method, and for longer by those that say what length does."""
    share = effort(settings, MINUTES)
    short, longer = (setting.on(settings.device).scaled(share) for setting in (MLP, LONG))
    methods = (BACKPROP, *(chain(error_dim) for error_dim in ERROR_DIMS), *OTHERS)
    return compare(
        [*((short, method) for method in methods), *((longer, method) for method in LONGER)], settings
    )


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if ``r = 10`` matches backpropagation in the longer runs and every smaller ``r`` costs accuracy.

    Partly, if one of the two holds, or if ``r = 10`` matches full Kolen-Pollack feedback: then the rank isn't the limit.
    """
    short, longer = result["summary"]
    enough = chain(ENOUGH).label
    gap, before = (behind(result, name, enough) for name in (longer, short))
    to_full = behind(result, longer, enough, KOLEN_POLLACK.label)
    smaller = {r: behind(result, short, chain(r).label, enough) for r in ERROR_DIMS if r < ENOUGH}
    costs = all(not found.matches for found in smaller.values())
    accuracy = {r: mean_of(result, short, chain(r).label) for r in ERROR_DIMS}
    steps = [result["configuration"]["networks"][name]["steps"] for name in (short, longer)]
    reason = (
        f"r = {ENOUGH} is {before} points behind backpropagation after {steps[0]:,} steps and {gap} after {steps[1]:,} "
        f"(limit {gap.tolerance:.2f}), {to_full} behind full Kolen-Pollack feedback (limit {to_full.tolerance:.2f}). "
        f"Accuracy after {steps[0]:,} steps: {', '.join(f'r = {r}: {found:.1f} %' for r, found in accuracy.items())}."
    )
    if gap.matches and costs:
        return "reproduced", reason
    return ("partly" if gap.matches or costs or to_full.matches else "not reproduced"), reason


def tables(result: Result) -> str:
    """Return the table of all methods, and that of the longer runs."""
    return "\n\n".join(f"{name}:\n\n{comparison_table(result, name)}" for name in result["summary"])


def draw(result: Result) -> Figure:
    """Draw accuracy over ``r`` with the other rules as levels, and accuracy over the number of steps."""
    short, longer = result["summary"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 2))
    others = {method.label: scores_of(result, short, method.label) for method in (BACKPROP, *OTHERS)}
    over_error_dim(left, {r: scores_of(result, short, chain(r).label) for r in ERROR_DIMS}, others)
    left.set_ylabel("test accuracy (%)")
    left.set_title(f"{short}, CIFAR-10", fontsize=10)
    legend(left, fontsize=8, loc="lower right")
    steps = {name: result["configuration"]["networks"][name]["steps"] for name in (short, longer)}
    for method in LONGER:
        found = {count: scores_of(result, name, method.label) for name, count in steps.items()}
        curve(right, found, method.label, **({"color": "C0"} | LOOKS.get(method.label, {})))
    number_axis(right, list(steps.values()), "steps")
    right.margins(x=0.2)
    right.set_title("trained longer", fontsize=10)
    legend(right, fontsize=8, loc="lower center")
    return figure


CLAIM = Claim(
    name="C2",
    title="A 4-layer, 512-wide ReLU network on CIFAR-10 matches backpropagation at r = 10; smaller r costs accuracy",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
