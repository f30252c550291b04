"""C6: the direct form against the chain form on the fully connected network, over the error dimension."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import behind, compare, mean_of, scores_of
from benchmarks.claims.figures import curve, legend, level, number_axis
from benchmarks.claims.methods import BACKPROP, chain, direct
from benchmarks.claims.networks import DIRECT_ERROR_DIMS, MLP
from benchmarks.claims.settings import effort
from benchmarks.reporting import markdown_table, mean_and_spread

MINUTES = 20.0


def run(settings: RunSettings) -> dict[str, Any]:
    """Train a fully connected network by both forms of the first generation, and by backpropagation."""
    setting = MLP.on(settings.device).scaled(effort(settings, MINUTES))
    methods = [BACKPROP]
    for error_dim in DIRECT_ERROR_DIMS:
        methods += [chain(error_dim), direct(error_dim)]
    return compare([(setting, method) for method in methods], settings)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if the direct form is nowhere behind the chain form; partly if that holds for some ``r``."""
    (setting,) = result["summary"]
    gaps = {r: behind(result, setting, direct(r).label, chain(r).label) for r in DIRECT_ERROR_DIMS}
    matching = [r for r, gap in gaps.items() if gap.matches]
    shown = ", ".join(
        f"r = {r}: {mean_of(result, setting, direct(r).label):.1f} against "
        f"{mean_of(result, setting, chain(r).label):.1f} %"
        for r in DIRECT_ERROR_DIMS
    )
    reason = f"Direct form against chain form, both of the first generation, {shown}"
    reason += f"; it keeps up at {len(matching)} of {len(gaps)}"
    untold = [f"r = {r}" for r, gap in gaps.items() if gap.is_open]
    reason += f", and runs scatter too much to tell at {', '.join(untold)}." if untold else "."
    if len(matching) == len(gaps):
        return "reproduced", reason
    return ("partly" if matching else "not reproduced"), reason


def tables(result: Result) -> str:
    """Return both forms side by side."""
    (setting,) = result["summary"]
    rows = []
    for r in DIRECT_ERROR_DIMS:
        gap = behind(result, setting, direct(r).label, chain(r).label)
        forms = [scores_of(result, setting, form(r).label) for form in (chain, direct)]
        rows.append(
            (
                str(r),
                *(mean_and_spread(scores) for scores in forms),
                str(gap),
                f"{gap.tolerance:.2f}",
                gap.in_words,
                str(len(forms[0])),
            )
        )
    header = ("r", "chain form (%)", "direct form (%)", "direct is behind by", "limit", "keeps up", "seeds")
    reference = mean_and_spread(scores_of(result, setting, BACKPROP.label))
    return f"{markdown_table(header, rows)}\n\nBackpropagation: {reference} %."


def draw(result: Result) -> Figure:
    """Draw both forms over ``r``."""
    (setting,) = result["summary"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    level(axes, scores_of(result, setting, BACKPROP.label), BACKPROP.label, color="black")
    for form, label, color in ((chain, "chain form", "C0"), (direct, "direct form", "C3")):
        found = {r: scores_of(result, setting, form(r).label) for r in DIRECT_ERROR_DIMS}
        curve(axes, found, label, color=color)
    number_axis(axes, DIRECT_ERROR_DIMS, "error dimension r")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{setting}, CIFAR-10", fontsize=10)
    legend(axes, loc="lower right")
    return figure


CLAIM = Claim(
    name="C6",
    title="The direct form matches the chain form on fully connected networks",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
