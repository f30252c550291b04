"""The rules of a run, freshly drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.errors import InputError
from lowdimfa.feedback.projection import PcaProjection, PRule, WholeError
from lowdimfa.feedback.readout import LocalReadout
from lowdimfa.feedback.rules import QRule, TransposedFeedback
from lowdimfa.rules import P_RULES, Q_RULES, Registry
from lowdimfa.tickets import derive_seed


class ErrorShape(NamedTuple):
    """Shape of the broadcast error of one sample.

    Attributes
    ----------
    task_dim
        Width of the tensor whose error it is, ``m``: of the output, or of a hidden state.
    error_dim
        Width of the broadcast, ``r``.
    position_dims
        1 where every token has an error of its own, else 0.
    positions
        Errors per sample: the number of tokens, or 1.
    """

    task_dim: int
    error_dim: int
    position_dims: int
    positions: int


def sends_classes(shape: ErrorShape, feedback: FeedbackConfig) -> bool:
    """Whether the number of its class goes with every error, which then doesn't show it: one number more.

    ``feedback`` is as `lowdimfa.feedback.entering.settled` returns it, here and below.
    """
    if feedback.form != "broadcast" or feedback.q_rule == "auto" or shape.error_dim == shape.task_dim:
        return False
    return Q_RULES.find(feedback.q_rule).needs_targets


def broadcast_width(shape: ErrorShape, feedback: FeedbackConfig) -> int:
    """Return how many numbers the head sends for an error."""
    return shape.error_dim + sends_classes(shape, feedback)


def feedback_columns(shape: ErrorShape, feedback: FeedbackConfig) -> int:
    """Return the columns of ``Q``: ``r``, or ``m`` where the class is sent, which ``Qᵀ t(h)`` predicts."""
    return shape.task_dim if sends_classes(shape, feedback) else shape.error_dim


def make_q_rule(
    features: int, shape: ErrorShape, feedback: FeedbackConfig, training: TrainingConfig, seed: int
) -> QRule:
    """Return the rule of a site with freshly drawn feedback weights, or where these start as ``Pᵀ``, with those.

    Rule and start are as `lowdimfa.feedback.source.at_site` returns them.

    Raises
    ------
    InputError
        It can't be made, or leaves no weights of the right shape.
    """
    generator = torch.Generator().manual_seed(seed)
    if feedback.form == "local":
        return LocalReadout(features, shape.task_dim, generator)
    identity = feedback.q_start == "identity"
    if identity and Q_RULES.find(feedback.q_rule) is QRule:
        return TransposedFeedback(make_projection(shape, feedback, training))
    columns = feedback_columns(shape, feedback)
    settings: dict[str, Any] = {
        "own_error": feedback.own_error,
        "probe_decay": feedback.probe_decay,
        "microbatches": training.microbatches,
    }
    if sends_classes(shape, feedback):  # fixed, and so what the head has drawn
        settings["projection"] = make_projection(shape, feedback, training).weights
    made = Q_RULES.make(feedback.q_rule, seed, features, columns, generator, **settings)
    weights: object = getattr(made, "weights", None)
    if not isinstance(weights, nn.Parameter) or weights.shape != (features, columns):
        raise _without_weights(Q_RULES, made, f"a parameter of shape {(features, columns)}")
    if "projection" in settings and getattr(made, "projection", None) is None:
        raise InputError(
            Q_RULES.key,
            f"{Q_RULES.name_of(type(made))!r}, whose constructor takes no 'projection' for ReadoutFeedback",
            f"one that hands it on, or error_dim the task's, {shape.task_dim}",
            "An error of fewer numbers than classes can't be told from a whole one without it.",
        )
    if identity:
        start = make_projection(shape, feedback, training)
        weights.data.copy_(torch.eye(features) if isinstance(start, WholeError) else start.weights.t())
    return made


def make_projection(shape: ErrorShape, feedback: FeedbackConfig, training: TrainingConfig) -> PRule:
    """Return the rule for ``P`` with freshly drawn weights; it raises as `make_q_rule` does."""
    seed = derive_seed(training.seed, "P")
    generator, dims = torch.Generator().manual_seed(seed), (shape.task_dim, shape.error_dim)
    settings = {"p_lr": feedback.p_lr, "p_decay": feedback.p_decay, "p_every": feedback.p_every}
    rule = feedback.p_rule_or_fixed
    if shape.error_dim == shape.task_dim and P_RULES.find(rule) in (PRule, PcaProjection):
        return WholeError(shape.task_dim)
    made = P_RULES.make(rule, seed, *dims, generator, **settings)
    weights: object = getattr(made, "weights", None)
    if not isinstance(weights, Tensor) or weights.shape != dims[::-1] or weights.dtype != torch.float32:
        raise _without_weights(P_RULES, made, f"a float32 tensor of shape {dims[::-1]}")
    return made


def _without_weights(registry: Registry[Any], made: object, expected: str) -> InputError:
    found = f"{registry.name_of(type(made))!r}, whose constructor leaves no such 'weights'"
    return InputError(registry.key, found, expected, "Call that of its base class.")
