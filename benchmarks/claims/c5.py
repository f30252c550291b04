"""C5: a vision transformer over the error dimension, and the other rules beside it."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import behind, compare, comparison_table
from benchmarks.claims.figures import method_dots
from benchmarks.claims.methods import (
    BACKPROP,
    FEEDBACK_ALIGNMENT,
    KOLEN_POLLACK,
    chain,
    direct_feedback_alignment,
    from_weights,
)
from benchmarks.claims.networks import VIT
from benchmarks.claims.settings import effort

MINUTES = 14.0
ERROR_DIMS = (4, 10, 32)
"""All below the 64 numbers of a token."""
ALIGNED = tuple(from_weights(chain(error_dim)) for error_dim in ERROR_DIMS)
OTHERS = (KOLEN_POLLACK, FEEDBACK_ALIGNMENT, direct_feedback_alignment(10))


def run(settings: RunSettings) -> dict[str, Any]:
    """Train the transformer by every method."""
    setting = VIT.on(settings.device).scaled(effort(settings, MINUTES))
    methods = (BACKPROP, *map(chain, ERROR_DIMS), *ALIGNED, *OTHERS)
    return compare([(setting, method) for method in methods], settings)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if an error dimension matches backpropagation; partly if one matches full Kolen-Pollack feedback."""
    (setting,) = result["summary"]
    gaps = {r: behind(result, setting, chain(r).label) for r in ERROR_DIMS}
    to_full = {r: behind(result, setting, chain(r).label, KOLEN_POLLACK.label) for r in ERROR_DIMS}
    reason = "Points behind backpropagation, and behind full Kolen-Pollack feedback: " + "; ".join(
        f"r = {r}: {gap} (limit {gap.tolerance:.2f}), {to_full[r]} (limit {to_full[r].tolerance:.2f})"
        for r, gap in gaps.items()
    )
    aligned = ", ".join(f"{behind(result, setting, one.label)} at r = {one.error_dim}" for one in ALIGNED)
    reason += f". With Q that starts at the transposed weights, behind backpropagation: {aligned}"
    if any(gap.matches for gap in gaps.values()):
        return "reproduced", f"{reason}."
    is_partly = any(gap.matches for gap in to_full.values())
    return ("partly" if is_partly else "not reproduced"), f"{reason}."


def tables(result: Result) -> str:
    """Return the table of all methods."""
    (setting,) = result["summary"]
    return comparison_table(result, setting)


def draw(result: Result) -> Figure:
    """Draw the accuracy of every method."""
    (setting,) = result["summary"]
    return method_dots(
        result["summary"][setting], f"{setting}, {result['configuration']['networks'][setting]['data']}"
    )


CLAIM = Claim(
    name="C5",
    title="A vision transformer matches backpropagation with low-dimensional feedback",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
