"""C2: a fully connected network on CIFAR-10 over the error dimension, by both generations of the rule and by others."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.claim import Claim
from benchmarks.claims.generations import Study, Target, draw, over, tables, with_backprop
from benchmarks.claims.methods import (
    FEEDBACK_ALIGNMENT,
    GENERATIONS,
    KOLEN_POLLACK,
    LOCAL,
    SIGN_SYMMETRY,
    Method,
    direct_feedback_alignment,
    generation,
    generation_label,
)
from benchmarks.claims.networks import DEEP_MLP, DEEP_MLP_NORMALISED
from benchmarks.claims.settings import Setting

ERROR_DIMS = (1, 2, 4, 10, 20, 40)
ONE_LAYER = "2.0"
"""The layer that is restricted where only one is, as its authors did."""
EXACT = ("0.1", "1.0", "3.0", "4.0")
ALONE = ", one layer"
OTHERS = (KOLEN_POLLACK, SIGN_SYMMETRY, LOCAL, FEEDBACK_ALIGNMENT, direct_feedback_alignment(10))


def alone(error_dims: Sequence[int], setting: Setting) -> list[Method]:
    """Return all rules in one layer, with the others exact."""
    return over(tuple(GENERATIONS), error_dims, setting, where=ALONE, skip=EXACT)


def methods(setting: Setting) -> tuple[Method, ...]:
    """Return every method on a network."""
    chain = over(tuple(GENERATIONS), ERROR_DIMS, setting)
    others = OTHERS if setting.label == DEEP_MLP.label else ()
    return with_backprop([*chain, *alone((1, 10), setting), *others])


def core(setting: Setting) -> tuple[Method, ...]:
    """Return what a small budget has: the targets, and the first generation beside them."""
    pairs = (
        ("low-dimensional", 10),
        ("local", 10),
        ("normative", 20),
        ("low-dimensional", 40),
        ("local", 40),
    )
    chain = [generation(rule, r, setting.steps_per_epoch) for rule, r in pairs]
    one = over(("normative", "local"), (10,), setting, where=ALONE, skip=EXACT)
    return with_backprop([*chain, *one])


STUDY = Study(
    (DEEP_MLP, DEEP_MLP_NORMALISED),
    methods,
    core,
    (
        Target(generation_label("normative", 10, ALONE), 0.5),
        Target(generation_label("local", 10, ALONE), 0.5),
        Target(generation_label("normative", 20), 0.5),
        Target(generation_label("local", 40), 0.5),
    ),
    (
        *((generation_label("local", r), generation_label("low-dimensional", r)) for r in (10, 40)),
        (generation_label("normative", 20), generation_label("low-dimensional", 40)),
    ),
)

CLAIM = Claim(
    name="C2",
    title="A 4-layer, 512-wide ReLU network on CIFAR-10 matches backpropagation at r = 10 where one layer is "
    "restricted, and at a few times that where all are",
    run=STUDY.run,
    draw=draw,
    judge=STUDY.judge,
    tables=tables,
)
