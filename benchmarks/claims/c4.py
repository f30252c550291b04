"""C4: a VGG-like network on CIFAR-10 with feedback of a share of the channels' rank, by both generations of the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.claims.claim import Claim
from benchmarks.claims.generations import Study, Target, draw, tables, with_backprop
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
from benchmarks.claims.networks import VGG, VGG_OUTPUT
from benchmarks.claims.settings import Setting

SHARES = (0.5, 0.25, 0.125)
OF_CHANNELS = " of the channels"
OTHERS = (
    *(replace(one, skip=(VGG_OUTPUT,)) for one in (KOLEN_POLLACK, SIGN_SYMMETRY, FEEDBACK_ALIGNMENT)),
    LOCAL,
    direct_feedback_alignment(VGG.classes),
)


def shares(rules: Sequence[str], setting: Setting) -> list[Method]:
    """Return rules at every share, with the classifier exact."""
    return [
        generation(rule, share, setting.steps_per_epoch, OF_CHANNELS, skip=(VGG_OUTPUT,))
        for share in SHARES
        for rule in rules
    ]


def methods(setting: Setting) -> tuple[Method, ...]:
    """Return every method, all with the classifier exact."""
    return with_backprop([*shares(tuple(GENERATIONS), setting), *OTHERS])


def core(setting: Setting) -> tuple[Method, ...]:
    """Return what a small budget has."""
    return with_backprop([one for one in shares(tuple(GENERATIONS), setting) if one.error_dim == SHARES[1]])


STUDY = Study(
    (VGG,),
    methods,
    core,
    tuple(Target(generation_label(rule, 0.25, OF_CHANNELS), 1.0) for rule in ("normative", "local")),
    tuple(
        (generation_label(rule, share, OF_CHANNELS), generation_label("low-dimensional", share, OF_CHANNELS))
        for share in SHARES
        for rule in ("normative", "local")
    ),
)

CLAIM = Claim(
    name="C4",
    title="A VGG-like network matches backpropagation with a feedback rank of a quarter of the channels",
    run=STUDY.run,
    draw=draw,
    judge=STUDY.judge,
    tables=tables,
)
