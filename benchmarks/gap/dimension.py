"""What a smaller error dimension costs in the broadcast form."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.claims.claim import Claim, Result, Verdict
from benchmarks.gap.networks import Network
from benchmarks.gap.rules import BACKPROP, FROZEN, HEBBIAN, READOUT, Rule, by_muon
from benchmarks.gap.sweeps import Line, Sweep
from lowdimfa.models import mlp

ERROR_DIMS = (1, 2, 5, 10)
WHOLE = 10
POINTS = 1.0
"""A difference that counts, in points of accuracy."""


def _line(label: str, rule: Rule, p_rule: str = "fixed") -> Line:
    return label, {
        error_dim: replace(
            rule,
            label=f"{label}, r = {error_dim}",
            feedback=replace(rule.feedback, error_dim=error_dim, p_rule=p_rule),
        )
        for error_dim in ERROR_DIMS
    }


SWEEP = Sweep(
    "r",
    ERROR_DIMS,
    (Network("MLP 4×512, Fashion-MNIST", mlp, (784, 512, 5, 10), "Fashion-MNIST", samples=20_000, epochs=3),),
    (
        _line("hebbian, P by Oja's rule", HEBBIAN, "oja"),
        _line("hebbian, P fixed", HEBBIAN),
        _line("hebbian, P by running PCA", HEBBIAN, "pca"),
        _line("readout with the class, P fixed", READOUT),
        _line("readout with the class, P fixed, Muon", by_muon(READOUT)),
    ),
    (BACKPROP, replace(READOUT, label="readout, r = 10"), FROZEN, by_muon(BACKPROP)),
    minutes=36.0,  # by the number of runs, from the 15 of the first two lines and levels
)


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if on every network one number costs over a point, and the task's dimension is within that of the best.

    With Oja's rule for `P`; partly if on some network.
    """
    label = SWEEP.lines[0][0]
    parts, holds = [], []
    for network in SWEEP.networks:
        losses = SWEEP.losses(result, label, network)
        behind_best = losses[WHOLE] - min(losses.values())
        holds.append(losses[1] - losses[WHOLE] > POINTS and behind_best <= POINTS)
        text = ", ".join(f"{loss:.1f} at r = {error_dim}" for error_dim, loss in losses.items())
        parts.append(f"{network.label}: {text}")
    reason = f"Points that {label} is behind backpropagation: {'; '.join(parts)}."
    return ("reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"), reason


CLAIM = Claim(
    name="DIMENSION",
    title="By Hebbian feedback the broadcast form, too, needs about the task's dimension: a smaller r costs accuracy",
    run=SWEEP.run,
    draw=SWEEP.draw,
    judge=judge,
    tables=SWEEP.tables,
)
