"""Build the blocks of a network: the one way, for the in-process trainer and for a process that holds one block."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lowdimfa.average import Average
from lowdimfa.block import Block
from lowdimfa.block_module import BlockModule
from lowdimfa.chunks import refuse_whole
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.errors import InputError
from lowdimfa.feedback.making import ErrorShape, make_projection, make_q_rule, sends_classes
from lowdimfa.feedback.resolving import error_shape, refuse_unlearnable, resolve_feedback
from lowdimfa.feedback.source import (
    at_site,
    identity_tap,
    output_start,
    sends_projection,
    source_of,
    starts_as_identity,
    wants_identity,
)
from lowdimfa.head import Head
from lowdimfa.losses import Objective
from lowdimfa.metrics import Metrics
from lowdimfa.muon import kinds_of, refuse_unused_patterns
from lowdimfa.optim import Updater
from lowdimfa.outcome import Sends
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rules import Q_RULES, TAPS
from lowdimfa.set_taps import SetTap
from lowdimfa.sites import FeedbackSite
from lowdimfa.stage_config import StageConfig
from lowdimfa.taps import Tap, choose_tap
from lowdimfa.tickets import derive_seed
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


def features_of(tap: Tap | SetTap, plan: BlockPlan) -> int:
    """Return the number of features of the tap of a block."""
    return sum(operator.index(each.features(shape)) for each, shape in _single(tap, plan))


def _single(tap: Tap | SetTap, plan: BlockPlan) -> list[tuple[Tap, tuple[int, ...]]]:
    """Return each tap of a block with the shape of what it is for."""
    return list(tap.taps.values()) if isinstance(tap, SetTap) else [(tap, plan.output_shape)]


def build_block(
    plan: BlockPlan,
    shape: ErrorShape,
    feedback: FeedbackConfig,
    training: TrainingConfig,
    device: torch.device | None = None,
) -> Block:
    """Build one block that isn't the head, with freshly drawn feedback weights.

    ``feedback`` is as `resolve_feedback` returns it.
    """
    parts = parts_of(plan, feedback, is_head=False)
    sites = [_site(part, shape, feedback, training, device) for part in parts.sites]
    module = plan.build().to(device or torch.device("cpu"))
    return Block(
        plan.index,
        module,
        _updater(plan, module, sites, training, is_head=False),
        sites,
        StageConfig.of(training, feedback),
        parts.starts,
        plan.ports,
    )


def build_head(
    plan: BlockPlan,
    shape: ErrorShape,
    feedback: FeedbackConfig,
    training: TrainingConfig,
    task: Task,
    device: torch.device | None = None,
) -> Head:
    """Build the last block."""
    refuse_whole(plan, feedback, training, task)
    parts = parts_of(plan, feedback, is_head=True)
    sites = [_site(part, shape, feedback, training, device) for part in parts.sites]
    module = plan.build().to(device or torch.device("cpu"))
    source, apart, chunk = source_of(feedback), output_start(plan), training.loss_chunk
    separate = chunk is not None or (source == "hidden" and apart > parts.starts[-1])
    return Head(
        plan.index,
        module,
        _updater(plan, module, sites, training, is_head=True),
        make_projection(shape, feedback, training),
        Objective.of(training, task, device),
        sites,
        StageConfig.of(training, feedback),
        [*parts.starts, apart] if separate else parts.starts,
        Sends(
            source,
            sends_classes(shape, feedback),
            sends_projection(shape, feedback),
            feedback.broadcast == "bf16",
        ),
        plan.ports,
        chunk,
        Metrics(training.metrics, device),
    )


def build_stages(
    plans: Sequence[BlockPlan],
    feedback: FeedbackConfig,
    training: TrainingConfig,
    task: Task,
    device: torch.device | None = None,
) -> tuple[list[Block], Head]:
    """Build all blocks of a network in this process."""
    refuse_unlearnable(plans, feedback)
    shape = error_shape(plans, feedback)
    feedback = resolve_feedback(feedback, shape, training, task)
    blocks = [build_block(plan, shape, feedback, training, device) for plan in plans[:-1]]
    head = build_head(plans[-1], shape, feedback, training, task, device)
    refuse_unused_patterns(stage.updater for stage in (*blocks, head))
    return blocks, head


def _site(
    plan: BlockPlan,
    shape: ErrorShape,
    feedback: FeedbackConfig,
    training: TrainingConfig,
    device: torch.device | None,
) -> FeedbackSite:
    """Return where the error enters a block, or a part of one, with freshly drawn feedback weights."""
    tap, boundary = tap_of(plan, feedback, shape), plan.layers[-1].name
    shapes = [plan.outputs[name].shape for name in plan.tapped]
    with TAPS.trying(
        type(_single(tap, plan)[0][0]), f"on outputs of shape {', '.join(map(str, shapes))} per sample"
    ):
        features = features_of(tap, plan)
        keeps_places = any(each.keeps_places(shape) for each, shape in _single(tap, plan))
    identity = starts_as_identity(plan, tap, feedback, shape)
    own = at_site(feedback, identity)
    rule = make_q_rule(features, shape, own, training, derive_seed(training.seed, "Q", boundary))
    if keeps_places and not identity:
        with Q_RULES.trying(type(rule), "in start_on_places()"):
            rule.start_on_places()
    return FeedbackSite(boundary, tap, rule.to(device or torch.device("cpu")))


def _updater(
    plan: BlockPlan,
    module: BlockModule,
    sites: Sequence[FeedbackSite],
    training: TrainingConfig,
    is_head: bool,
) -> Updater:
    plain = [name for name, _ in module.named_plain_parameters()]
    kinds = dict(zip(plain, kinds_of(module, head=is_head).values(), strict=True))
    forward = {
        name: parameter for name, parameter in module.named_plain_parameters() if parameter.requires_grad
    }
    trained = dict(forward)
    for site in sites:
        if site.feedback.trained_by_optimizer and forward:
            weights = site.feedback.weights
            weights.requires_grad_()  # a factory may take only what does, as is usual
            trained[f"{site.boundary}.Q"] = weights
            kinds[f"{site.boundary}.Q"] = "feedback"
    seed = derive_seed(training.seed, "updater", plan.index)
    update = training.update_of(plan.index)
    average = Average(forward, training.average) if training.average is not None and forward else None
    return Updater(trained, list(forward.values()), update, training.total_steps, seed, kinds, average)


def _ends_in_residual_stream(plan: BlockPlan) -> bool:
    last = plan.layers[-1].module
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    return bool(getattr(last, "residual_stream", False))
