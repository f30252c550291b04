"""What the number of blocks costs."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.claims.claim import Claim, Result, Verdict
from benchmarks.claims.comparison import STANDARD_ERRORS, Gap, gap_between, scores_of
from benchmarks.gap.networks import Network
from benchmarks.gap.rules import BACKPROP, HEBBIAN, LOCAL, READOUT, Rule
from benchmarks.gap.sweeps import Line, Sweep
from lowdimfa.models import mlp, vit

COUNTS = (2, 4, 8)
POINTS = 1.0
"""What the default may lose at any number of blocks."""


def _line(rule: Rule) -> Line:
    return rule.label, {
        count: replace(rule, label=f"{rule.label}, {count} blocks", blocks=count) for count in COUNTS
    }


SWEEP = Sweep(
    "blocks",
    COUNTS,
    (
        Network(
            "MLP 7×256, Fashion-MNIST", mlp, (784, 256, 8, 10), "Fashion-MNIST", samples=20_000, epochs=3
        ),
        Network(
            "vision transformer of 8 layers, Fashion-MNIST",
            vit,
            (28, 7, 1, 32, 8, 4, 10),
            "Fashion-MNIST",
            samples=6_000,
            epochs=4,
        ),
    ),
    tuple(_line(rule) for rule in (READOUT, HEBBIAN, LOCAL)),
    (BACKPROP,),
)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reached if nowhere the default is more than a point behind itself with the fewest blocks.

    Not if somewhere it is by a point and 2 standard errors; what lies between can't be told.
    """
    fewest, *more = COUNTS
    line, parts, found = dict(SWEEP.lines)[READOUT.label], [], list[Gap]()
    for network in SWEEP.networks:
        scores = {count: scores_of(result, network.label, line[count].label) for count in COUNTS}
        costs = {count: gap_between(scores[fewest], scores[count]) for count in more}
        found += costs.values()
        text = ", ".join(f"{cost} ± {cost.noise:.2f} with {count}" for count, cost in costs.items())
        parts.append(f"{network.label}: {text}")
    reason = (
        f"Points that the default (readout) loses beside {fewest} blocks, ± {STANDARD_ERRORS} standard errors: "
        f"{'; '.join(parts)}."
    )
    if any(cost.points - cost.noise > POINTS for cost in found):
        return "not reached", reason
    return ("reached" if all(cost.points <= POINTS for cost in found) else "partly"), reason


CLAIM = Claim(
    name="BLOCKS",
    title="More blocks cost the default at most a point of accuracy",
    run=SWEEP.run,
    draw=SWEEP.draw,
    judge=judge,
    tables=SWEEP.tables,
)
