"""C5: a vision transformer on CIFAR-10 over the error dimension, by both generations of the rule.

The joint projection of query, key and value has ``3 r`` numbers, as its authors have it: from a third of the width on,
which ``r`` = 32 is for 96, that restricts it in no way. All other layers it does.
"""

from __future__ import annotations

from dataclasses import replace

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
    generation_label,
)
from benchmarks.claims.networks import VIT
from benchmarks.claims.settings import Setting

ERROR_DIMS = (10, 16, 32, 48)
EMBEDDING = "0.patches"
JOINT = "qkv"
UNRESTRICTED = (
    "The joint projection of query, key and value has three times `r` numbers, as its authors have it: from `r` of a\n"
    "third of the width on, all of its rank."
)
OTHERS = (
    *(replace(one, skip=(EMBEDDING,)) for one in (KOLEN_POLLACK, SIGN_SYMMETRY, FEEDBACK_ALIGNMENT)),
    LOCAL,
    direct_feedback_alignment(VIT.classes),
)


def chain(error_dims: tuple[int, ...], setting: Setting) -> list[Method]:
    """Return all rules, with the embedding exact and ``3 r`` for query, key and value together."""
    return over(tuple(GENERATIONS), error_dims, setting, skip=(EMBEDDING,), joint=(JOINT,))


def methods(setting: Setting) -> tuple[Method, ...]:
    """Return every method, all with the embedding exact."""
    return with_backprop([*chain(ERROR_DIMS, setting), *OTHERS])


def core(setting: Setting) -> tuple[Method, ...]:
    """Return what a small budget has."""
    return with_backprop(chain(ERROR_DIMS[-1:], setting))


STUDY = Study(
    (VIT,),
    methods,
    core,
    tuple(Target(generation_label(rule, ERROR_DIMS[-1]), 0.5) for rule in ("normative", "local")),
    tuple((generation_label("local", r), generation_label("low-dimensional", r)) for r in ERROR_DIMS),
)

CLAIM = Claim(
    name="C5",
    title="A vision transformer matches backpropagation with feedback of five times the classes",
    run=STUDY.run,
    draw=draw,
    judge=STUDY.judge,
    tables=lambda result: f"{tables(result)}\n\n{UNRESTRICTED}",
)
