"""Build the blocks of a network: the one way, for the in-process trainer and for a process that holds one block."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowdimfa.average import Average
from lowdimfa.block import Block
from lowdimfa.block_module import BlockModule
from lowdimfa.chunks import refuse_whole
from lowdimfa.config import FeedbackConfig, TrainingConfig
from lowdimfa.data.base import Task
from lowdimfa.feedback.entering import features_of, parts_of, settled, single_taps, tap_of
from lowdimfa.feedback.making import ErrorShape, make_projection, make_q_rule, sends_classes
from lowdimfa.feedback.source import (
    at_site,
    output_start,
    sends_projection,
    source_of,
    starts_as_identity,
)
from lowdimfa.head import Head
from lowdimfa.kinds import kinds_of
from lowdimfa.losses import Objective
from lowdimfa.metrics import Metrics
from lowdimfa.muon import refuse_unused
from lowdimfa.optim import Updater
from lowdimfa.outcome import Sends
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rules import Q_RULES, TAPS
from lowdimfa.sites import FeedbackSite
from lowdimfa.stage_config import StageConfig
from lowdimfa.tickets import derive_seed


def build_block(
    plan: BlockPlan,
    shape: ErrorShape,
    feedback: FeedbackConfig,
    training: TrainingConfig,
    device: torch.device | None = None,
) -> Block:
    """Build one block that isn't the head, with freshly drawn feedback weights.

    ``feedback`` is as `settled` returns it.
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
    shape, feedback = settled(plans, feedback, training, task)
    blocks = [build_block(plan, shape, feedback, training, device) for plan in plans[:-1]]
    head = build_head(plans[-1], shape, feedback, training, task, device)
    refuse_unused(stage.updater for stage in (*blocks, head))
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
        type(single_taps(tap, plan)[0][0]), f"on outputs of shape {', '.join(map(str, shapes))} per sample"
    ):
        features = features_of(tap, plan)
        keeps_places = any(each.keeps_places(shape) for each, shape in single_taps(tap, plan))
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
