"""What settings of feedback come to in a network: the shape of its error, and the rules that ``auto`` stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.feedback.making import ErrorShape, sends_classes
from lowdimfa.feedback.projection import PRule
from lowdimfa.feedback.readout import ReadoutFeedback
from lowdimfa.feedback.source import source_of, source_shape, wants_identity
from lowdimfa.formats import INT8, Halves
from lowdimfa.losses import shows_targets
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rules import P_RULES, Q_RULES
from lowdimfa.sending import format_between


def error_shape(plans: Sequence[BlockPlan], feedback: FeedbackConfig) -> ErrorShape:
    """Return the shape of the broadcast error of a partitioned network.

    Raises
    ------
    InputError
        The tensor whose error it is has more than one position dimension, or ``error_dim`` isn't between 1 and its width.
    """
    output = source_shape(plans[-1], feedback)
    if not 1 <= len(output) <= 2:
        raise InputError(
            "model.factory",
            f"an output of shape {output} per sample",
            "(outputs,) for one error per sample or (tokens, outputs) for one per token",
        )
    task_dim = output[-1]
    error_dim = task_dim if feedback.error_dim is None else feedback.error_dim
    whose = "task" if source_of(feedback) == "logits" else "hidden state"
    if not 1 <= error_dim <= task_dim:
        raise InputError(
            "feedback.error_dim",
            str(error_dim),
            f"between 1 and the {whose}'s dimension, {task_dim}",
            "More than that carries no information.",
        )
    return ErrorShape(task_dim, error_dim, len(output) - 1, output[0] if len(output) == 2 else 1)


def refuse_unlearnable(plans: Sequence[BlockPlan], feedback: FeedbackConfig) -> None:
    """Refuse a network in which nothing would be learned.

    Raises
    ------
    InputError
        All parameters of the blocks that the form of feedback lets learn are frozen.
    """
    learning = plans[-1:] if feedback.form == "frozen" else plans
    if not any(plan.learns for plan in learning):
        where = "a head" if feedback.form == "frozen" else "a model"
        raise InputError(
            "model.factory",
            f"{where} in which no parameter requires a gradient",
            "at least one to learn",
            "Parameters are frozen by the factory (requires_grad=False), or by model.frozen.",
        )


def resolve_feedback(
    feedback: FeedbackConfig, shape: ErrorShape, training: TrainingConfig, task: Task
) -> FeedbackConfig:
    """Return the feedback with ``auto`` replaced as far as can be, whose errors and probes survive their travel.

    Raises
    ------
    InputError
        They don't; or the rule is one that `_resolved` refuses.
    """
    found = _resolved(feedback, shape, training, task)
    if found.broadcast == "bf16" and sends_classes(shape, found) and shape.task_dim > _EXACT_CLASSES:
        raise InputError(
            "feedback.broadcast",
            f"'bf16' with the numbers of {shape.task_dim} classes, which go with errors of {shape.error_dim} numbers",
            f"'fp32', as bfloat16 tells only {_EXACT_CLASSES} of them apart",
            "feedback.q_rule: hebbian needs no such numbers.",
        )
    form = format_between(training, found)
    if found.probe_interval and form not in (None, Halves(), INT8):
        raise InputError(
            "train.activations",
            f"{form} with the q_rule {Q_RULES.name_of(Q_RULES.find(found.q_rule))!r}",
            "fp32, bf16 or int8, as the noise of probes is lost in what is coarser",
        )
    return found


_EXACT_CLASSES = 257
"""How many numbers of classes from -1 on bfloat16 has without gaps, the -1 not counted."""


def _resolved(
    feedback: FeedbackConfig, shape: ErrorShape, training: TrainingConfig, task: Task
) -> FeedbackConfig:
    """Return the feedback with ``auto`` replaced: ``readout`` where blocks can be told the targets, else ``hebbian``.

    Where some blocks may start as the identity it stays ``auto``, and each has its own
    (`lowdimfa.feedback.source.at_site`).

    Raises
    ------
    InputError
        There is no such rule; one that needs the targets is asked for where blocks can't be told them; or the error is to
        enter at every layer of a form in which it doesn't.
    """
    if feedback.form != "broadcast":
        if feedback.every_layer:
            expected = "form 'broadcast', the only one whose error enters at every layer"
            raise InputError("feedback.every_layer", f"True with form {feedback.form!r}", expected)
        return replace(feedback, q_rule="fixed")
    _refuse_unknown_identity(feedback)
    p_rule, whole = P_RULES.find(feedback.p_rule_or_fixed), shape.error_dim == shape.task_dim
    # Below the task's dimension each block needs P itself; of a rule of the user's own c may be anything.
    known = P_RULES.is_built_in(p_rule) if whole else p_rule is PRule
    possible = known and feedback.source == "logits" and shows_targets(training.loss, task)
    if feedback.q_rule == "auto" and wants_identity(feedback):
        return feedback
    if feedback.q_rule == "auto":
        return replace(feedback, q_rule="readout" if possible else "hebbian")
    rule = Q_RULES.find(feedback.q_rule)
    if not rule.needs_targets or (
        possible and (whole or (issubclass(rule, ReadoutFeedback) and not rule.probed))
    ):
        return feedback
    name = Q_RULES.name_of(rule)
    found, expected = f"{name!r} with a loss {training.loss!r} on {task}", "softmax cross-entropy"
    if feedback.source != "logits":
        found, expected = f"{name!r} with the error of {feedback.source!r}", "source 'logits'"
    elif shows_targets(training.loss, task) and whole:
        found, expected = f"{name!r} with a p_rule of your own", "a built-in p_rule"
    elif shows_targets(training.loss, task):
        p_name = P_RULES.name_of(p_rule)
        found = f"{name!r} with {shape.error_dim} of {shape.task_dim} error numbers and p_rule {p_name!r}"
        expected = "'readout' with p_rule 'fixed', or error_dim the task's"
    raise InputError(
        "feedback.q_rule",
        found,
        f"{expected}: only so can a block be told the targets",
        "'auto' takes 'hebbian' elsewhere.",
    )


def _refuse_unknown_identity(feedback: FeedbackConfig) -> None:
    """Refuse an identity where a block can't know ``P``, or has something else to start as.

    Raises
    ------
    InputError
        The rule for ``P`` is the user's own, or that for ``Q`` a readout.
    """
    if feedback.q_start != "identity":
        return
    p_rule = P_RULES.find(feedback.p_rule_or_fixed)
    if not P_RULES.is_built_in(p_rule):
        found = f"'identity' with the p_rule {P_RULES.name_of(p_rule)!r}"
        raise InputError("feedback.q_start", found, "a built-in p_rule, whose P a block can know")
    if feedback.q_rule != "auto" and Q_RULES.find(feedback.q_rule).needs_targets:
        found = f"'identity' with the q_rule {Q_RULES.name_of(Q_RULES.find(feedback.q_rule))!r}"
        raise InputError("feedback.q_start", found, "another q_rule: a readout is one of the classes")
