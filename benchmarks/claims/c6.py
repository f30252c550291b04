"""C6: the direct form against the chain form of both generations on the fully connected network, over ``r``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import Gap, behind, compare, mean_of, scores_of
from benchmarks.claims.figures import curve, legend, level, number_axis
from benchmarks.claims.methods import BACKPROP, GENERATIONS, direct, generation, generation_label
from benchmarks.claims.networks import DIRECT_ERROR_DIMS, MLP
from benchmarks.claims.settings import effort
from benchmarks.reporting import markdown_table, mean_and_spread

MINUTES = 40.0


def run(settings: RunSettings) -> dict[str, Any]:
    """Train a network by the direct form, by the chain form of both generations, and by backpropagation."""
    setting = MLP.on(settings.device).scaled(effort(settings, MINUTES))
    methods = [BACKPROP]
    for error_dim in DIRECT_ERROR_DIMS:
        methods += [generation(rule, error_dim, setting.steps_per_epoch) for rule in GENERATIONS]
        methods.append(direct(error_dim))
    return compare([(setting, method) for method in methods], settings)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if the direct form is nowhere behind the chain form of any generation; partly if not everywhere."""
    (setting,) = result["summary"]
    found = {rule: _gaps(result, rule) for rule in GENERATIONS}
    scores = ", ".join(f"{mean_of(result, setting, direct(r).label):.1f}" for r in DIRECT_ERROR_DIMS)
    parts = [f"The direct form, of the first generation, has {scores} % at r = {_listed(DIRECT_ERROR_DIMS)}"]
    for rule, gaps in found.items():
        means = ", ".join(
            f"{mean_of(result, setting, generation_label(rule, r)):.1f}" for r in DIRECT_ERROR_DIMS
        )
        kept = sum(gap.matches for gap in gaps.values())
        text = f"the chain form by {GENERATIONS[rule]} {means}: the direct form keeps up at {kept} of {len(gaps)}"
        untold = [r for r, gap in gaps.items() if gap.is_open]
        parts.append(
            text + (f", and runs scatter too much to tell at r = {_listed(untold)}" if untold else "")
        )
    matching = [gap.matches for gaps in found.values() for gap in gaps.values()]
    reason = f"{'; '.join(parts)}."
    if all(matching):
        return "reproduced", reason
    return ("partly" if any(matching) else "not reproduced"), reason


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _gaps(result: Result, rule: str) -> dict[int, Gap]:
    """Return how far the direct form is behind a rule of the chain form, by ``r``."""
    (setting,) = result["summary"]
    return {r: behind(result, setting, direct(r).label, generation_label(rule, r)) for r in DIRECT_ERROR_DIMS}


def tables(result: Result) -> str:
    """Return all forms side by side, and how far the direct form is behind each rule of the chain form."""
    (setting,) = result["summary"]
    found = {rule: _gaps(result, rule) for rule in GENERATIONS}
    rows = []
    for r in DIRECT_ERROR_DIMS:
        labels = [*(generation_label(rule, r) for rule in GENERATIONS), direct(r).label]
        scores = [scores_of(result, setting, label) for label in labels]
        gaps = [gaps[r] for gaps in found.values()]
        behind_by = (f"{gap} (limit {gap.tolerance:.2f}): {gap.in_words}" for gap in gaps)
        rows.append((str(r), *map(mean_and_spread, scores), *behind_by, str(len(scores[0]))))
    names = list(GENERATIONS.values())
    header = ("r", *names, "direct form", *(f"direct behind {name}: keeps up" for name in names), "seeds")
    reference = mean_and_spread(scores_of(result, setting, BACKPROP.label))
    return f"Test accuracy in %:\n\n{markdown_table(header, rows)}\n\nBackpropagation: {reference} %."


def draw(result: Result) -> Figure:
    """Draw all forms over ``r``."""
    (setting,) = result["summary"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    level(axes, scores_of(result, setting, BACKPROP.label), BACKPROP.label, color="black")
    for number, (rule, name) in enumerate(GENERATIONS.items()):
        found = {r: scores_of(result, setting, generation_label(rule, r)) for r in DIRECT_ERROR_DIMS}
        curve(axes, found, f"chain form, {name}", color=f"C{number}")
    curve(
        axes,
        {r: scores_of(result, setting, direct(r).label) for r in DIRECT_ERROR_DIMS},
        "direct form",
        color="C3",
    )
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
