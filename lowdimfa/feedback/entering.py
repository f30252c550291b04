"""Where the broadcast error enters the blocks of a network, and what its feedback comes to there."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.feedback.resolving import error_shape, refuse_unlearnable, resolve_feedback
from lowdimfa.feedback.source import identity_tap, sends_projection, starts_as_identity, wants_identity
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rules import TAPS
from lowdimfa.set_taps import SetTap
from lowdimfa.taps import Tap, choose_tap
from lowdimfa.values import ONE


class Parts(NamedTuple):
    """The parts of a block between which no gradient passes.

    Attributes
    ----------
    starts
        Index, within the block, of the layer at which each part begins.
    sites
        Those at whose ends the broadcast error enters: in the head all but the last one.
    """

    starts: list[int]
    sites: list[BlockPlan]


def parts_of(plan: BlockPlan, feedback: FeedbackConfig, is_head: bool) -> Parts:
    """Return the parts of a block: itself, or with ``every_layer`` as many as can be.

    No error enters a block that has nothing to learn.
    """
    if not (is_head or plan.learns):
        return Parts([0], [])
    starts = plan.starts if feedback.every_layer else [0]
    parts = plan.parts(starts)
    return Parts(starts, parts[:-1] if is_head else parts)


def tap_of(plan: BlockPlan, feedback: FeedbackConfig, shape: ErrorShape) -> Tap | SetTap:
    """Return the tap of a block, or those of a named set that it puts out.

    Raises
    ------
    InputError
        Errors are per token but the block's output has no token dimension of that length.
    """
    residual, taps = _ends_in_residual_stream(plan), {}
    aligned = feedback.tap == "auto" and wants_identity(feedback)
    for name in plan.tapped:
        output = plan.outputs[name].shape
        if shape.position_dims and output[:1] != (shape.positions,):
            raise InputError(
                "model.blocks",
                f"block {plan.index} ({plan.name}) with outputs {name and f'{name!r} '}{output} under an error for each "
                f"of {shape.positions} tokens",
                "blocks whose outputs keep the token dimension first",
            )
        tap = identity_tap(output, shape) if aligned and name == ONE else None
        taps[name] = tap or choose_tap(feedback.tap, output, shape.position_dims, residual), output
    return taps[ONE][0] if ONE in taps else SetTap(taps)


def settled(
    plans: Sequence[BlockPlan], feedback: FeedbackConfig, training: TrainingConfig, task: Task
) -> tuple[ErrorShape, FeedbackConfig]:
    """Return the shape of a network's broadcast error, and the feedback with ``auto`` replaced as far as can be.

    Raises
    ------
    InputError
        The network has nothing to learn, no such error, or not by these rules.
    """
    refuse_unlearnable(plans, feedback)
    shape = error_shape(plans, feedback)
    found = resolve_feedback(feedback, shape, training, task)
    if found.p_rule == "auto":
        found = replace(found, p_rule="pca" if _all_follow(plans, shape, found) else "fixed")
    return shape, found


def _all_follow(plans: Sequence[BlockPlan], shape: ErrorShape, feedback: FeedbackConfig) -> bool:
    """Whether ``Q`` is ``Pᵀ`` wherever the error enters, and is told when ``P`` changes.

    Any other ``Q`` was learned against the rows of before (docs/negative-results.md).
    """
    known = feedback.tap == "auto" or TAPS.is_built_in(TAPS.find(feedback.tap))
    if not known or not sends_projection(shape, feedback):
        return False
    sites = (site for plan in plans for site in parts_of(plan, feedback, plan is plans[-1]).sites)
    return all(starts_as_identity(site, tap_of(site, feedback, shape), feedback, shape) for site in sites)


def features_of(tap: Tap | SetTap, plan: BlockPlan) -> int:
    """Return the number of features of the tap of a block."""
    return sum(operator.index(each.features(shape)) for each, shape in single_taps(tap, plan))


def single_taps(tap: Tap | SetTap, plan: BlockPlan) -> list[tuple[Tap, tuple[int, ...]]]:
    """Return each tap of a block with the shape of what it is for."""
    return list(tap.taps.values()) if isinstance(tap, SetTap) else [(tap, plan.output_shape)]


def _ends_in_residual_stream(plan: BlockPlan) -> bool:
    last = plan.layers[-1].module
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    return bool(getattr(last, "residual_stream", False))
