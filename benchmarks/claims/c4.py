"""C4: a VGG-like network on CIFAR-10 with feedback of a share of the channels' rank, and the other rules beside it."""

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
    SIGN_SYMMETRY,
    chain_share,
    direct_feedback_alignment,
    from_weights,
)
from benchmarks.claims.networks import VGG, VGG_OUTPUT
from benchmarks.claims.settings import effort

MINUTES = 22.0
SHARES = tuple(
    chain_share(share, text, VGG_OUTPUT, 10) for share, text in ((0.5, "1/2"), (0.25, "1/4"), (0.125, "1/8"))
)
ALIGNED = tuple(from_weights(method) for method in SHARES)
OTHERS = (KOLEN_POLLACK, SIGN_SYMMETRY, FEEDBACK_ALIGNMENT, direct_feedback_alignment(10))


def run(settings: RunSettings) -> dict[str, Any]:
    """Train the network by every method."""
    setting = VGG.on(settings.device).scaled(effort(settings, MINUTES))
    return compare([(setting, method) for method in (BACKPROP, *SHARES, *ALIGNED, *OTHERS)], settings)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if every share matches backpropagation; partly if one does, or all match full Kolen-Pollack feedback."""
    (setting,) = result["summary"]
    gaps = {method.label: behind(result, setting, method.label) for method in SHARES}
    to_full = {method.label: behind(result, setting, method.label, KOLEN_POLLACK.label) for method in SHARES}
    reason = "Points behind backpropagation, and behind full Kolen-Pollack feedback: " + "; ".join(
        f"{label.removeprefix('chain form, ')}: {gaps[label]} (limit {gaps[label].tolerance:.2f}), "
        f"{to_full[label]} (limit {to_full[label].tolerance:.2f})"
        for label in gaps
    )
    aligned = ", ".join(
        f"{behind(result, setting, method.label)} at r = {method.error_dim:g} of the channels"
        for method in ALIGNED
    )
    reason += f". With Q that starts at the transposed weights, behind backpropagation: {aligned}"
    matching = [gap.matches for gap in gaps.values()]
    if all(matching):
        return "reproduced", f"{reason}."
    is_partly = any(matching) or all(gap.matches for gap in to_full.values())
    return ("partly" if is_partly else "not reproduced"), f"{reason}."


def tables(result: Result) -> str:
    """Return the table of all methods."""
    (setting,) = result["summary"]
    note = "Shares are of each layer's channels, which the configuration lists; the output layer has all of its own."
    return f"{comparison_table(result, setting)}\n\n{note}"


def draw(result: Result) -> Figure:
    """Draw the accuracy of every method."""
    (setting,) = result["summary"]
    return method_dots(
        result["summary"][setting], f"{setting}, {result['configuration']['networks'][setting]['data']}"
    )


CLAIM = Claim(
    name="C4",
    title="A VGG-like network matches backpropagation with a feedback rank of 1/2, 1/4 and 1/8 of the channels",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
