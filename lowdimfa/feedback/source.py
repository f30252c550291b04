"""The tensor whose error is broadcast, and the blocks that can take that error as it is.

Beyond the paper. On a residual stream ``h_L = h_l + …`` the Jacobian from any block's output to the head's input is the
identity plus something: the error of the head's input, seen through ``P``, is aligned with that of every block from the
first step, with ``Q = Pᵀ``. No weight is transported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lowdimfa.config import FeedbackConfig, Source
from lowdimfa.errors import InputError
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.feedback.rules import QRule
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.set_taps import SetTap
from lowdimfa.taps import FlatTap, PooledTap, Tap
from lowdimfa.values import ONE

_MAPS = 4
"""Dimensions of a batch of feature maps."""


def source_of(feedback: FeedbackConfig) -> Source:
    """Return the tensor whose error the head makes; of local losses only that of the output is of use."""
    return "logits" if feedback.form == "local" else feedback.source


def output_start(head: BlockPlan) -> int:
    """Return the index, within the head, of the output layer: its last one that has parameters."""
    learning = [index for index, layer in enumerate(head.layers) if layer.has_parameters]
    return learning[-1] if learning else len(head.layers) - 1


def source_shape(head: BlockPlan, feedback: FeedbackConfig) -> tuple[int, ...]:
    """Return the shape, for one sample, of the error that is broadcast: of feature maps a number for each channel.

    With ``every_layer`` the head's exact part begins at the last of its layers at which a block may begin, and so does
    what counts as the head's input.

    Raises
    ------
    InputError
        It has no error, or none that blocks could take.
    """
    source = source_of(feedback)
    if source == "logits":
        return tuple(head.output_shape)
    exact = head.starts[-1] if feedback.every_layer else 0
    start = exact if source == "head_input" else output_start(head)
    types = head.flows[start - 1].outputs if start else head.inputs
    if not types:
        raise _refused_inputs(source, "by name")
    if set(types) != {ONE}:
        raise InputError(
            "feedback.source",
            f"{source!r} where {', '.join(map(repr, types))} go from layer to layer by name",
            "one tensor there",
        )
    shape, dtype = types[ONE]
    if not start and not dtype.is_floating_point:
        raise _refused_inputs(source, f"of type {dtype}")
    if not 1 <= len(shape) <= 3:
        raise InputError(
            "feedback.source",
            f"{source!r} where that tensor has shape {shape} per sample",
            "one of shape (width,), (tokens, width) or (channels, height, width)",
        )
    return shape[:1] if len(shape) == 3 else shape


def _refused_inputs(source: Source, inputs: str) -> InputError:
    return InputError(
        "feedback.source",
        f"{source!r} in a network whose last block begins with its inputs {inputs}",
        "a last block that is reached by the output of another one",
        "With a single block there is nothing to broadcast.",
    )


def over_pixels(error: Tensor) -> Tensor:
    """Return the error of a hidden state with that of a feature map added up over its pixels: of each channel's shift."""
    return error.flatten(2).sum(-1) if error.dim() == _MAPS else error


def mean_over_pixels(hidden: Tensor) -> Tensor:
    """Return a hidden state with the mean of each channel in place of a feature map."""
    return hidden.flatten(2).mean(-1) if hidden.dim() == _MAPS else hidden


def wants_identity(feedback: FeedbackConfig) -> bool:
    """Whether ``Q`` is to start as ``Pᵀ`` where that fits."""
    if feedback.form != "broadcast" or feedback.q_start == "random":
        return False
    if feedback.q_start == "identity":
        return True
    built_in = P_RULES.is_built_in(P_RULES.find(feedback.p_rule_or_fixed)) and (
        feedback.q_rule == "auto" or Q_RULES.is_built_in(Q_RULES.find(feedback.q_rule))
    )
    return feedback.source != "logits" and built_in


def identity_tap(output: Sequence[int], shape: ErrorShape) -> Tap | None:
    """Return the tap, without normalisation, whose features are the error's own: at each token, or the mean over them."""
    taps: list[Tap] = [FlatTap(shape.position_dims), PooledTap(shape.position_dims)]
    return next((tap for tap in taps if tap.features(output) == shape.task_dim), None)


def starts_as_identity(
    plan: BlockPlan, tap: Tap | SetTap, feedback: FeedbackConfig, shape: ErrorShape
) -> bool:
    """Whether ``Q`` of a block starts as ``Pᵀ``.

    Raises
    ------
    InputError
        It is asked for and doesn't fit.
    """
    if not wants_identity(feedback):
        return False
    features = None if isinstance(tap, SetTap) else tap.features(plan.output_shape)
    if features != shape.task_dim and feedback.q_start == "identity":
        raise InputError(
            "feedback.q_start",
            f"'identity' at {plan.layers[-1].name!r} of block {plan.index}, whose tap {tap.name!r} has "
            f"{'several tensors' if features is None else f'{features} features'} under an error of width "
            f"{shape.task_dim}",
            "blocks whose outputs have the width of the error",
            "'auto' takes the identity where it fits.",
        )
    return features == shape.task_dim


def at_site(feedback: FeedbackConfig, identity: bool) -> FeedbackConfig:
    """Return the feedback of one site, with a start and a rule in place of ``auto``."""
    rule = feedback.q_rule
    if rule == "auto":
        rule = "fixed" if identity else "hebbian"
    return replace(feedback, q_rule=rule, q_start="identity" if identity else "random")


def stays_transposed(feedback: FeedbackConfig) -> bool:
    """Whether a ``Q`` that starts as ``Pᵀ`` remains it, and has no weights of its own."""
    return feedback.q_rule == "auto" or Q_RULES.find(feedback.q_rule) is QRule


def sends_projection(shape: ErrorShape, feedback: FeedbackConfig) -> bool:
    """Whether ``P`` goes with the errors of a step before which it has changed, for the blocks whose ``Q`` is ``Pᵀ``.

    One that stays as it is, too: a checkpoint may bring what another rule has learned.
    """
    return wants_identity(feedback) and stays_transposed(feedback) and shape.error_dim < shape.task_dim
