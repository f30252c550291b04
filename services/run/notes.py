"""What people should know of a planned run before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lowdimfa.data.items import ItemSplit
from lowdimfa.data.splits import Split, TensorSplit, in_whole
from lowdimfa.errors import InputError, some_of
from lowdimfa.feedback.resolving import resolve_feedback
from lowdimfa.feedback.source import source_of, source_shape
from lowdimfa.losses import LOSSES
from lowdimfa.services.run.described import renamed
from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.tokenizer_files import cut_otherwise
from lowdimfa.services.run.training import feedback_config

_FAR_WIDER = 2
"""Times the width of the network, from which an error of so many numbers is worth a word."""


def aligns(network: NetworkPlan) -> bool:
    """Whether updates can be compared with true gradients, which takes all blocks in one process."""
    learning = any(block.learns for block in network.blocks[:-1])
    return network.feedback.form == "broadcast" and network.outline is None and learning


def notes(plan: RunPlan) -> Iterator[str]:
    """Yield warnings."""
    network, specification = plan.network, plan.specification
    yield from network.notices
    if network.note:
        yield network.note
    if told := cut_otherwise(network, specification.data.args.get("path")):
        yield told
    if _lacks_readout(plan):
        yield (
            "feedback.q_rule: auto is hebbian with a loss of your own, from whose error blocks can't tell the targets; "
            "with train.loss: cross_entropy it is readout"
        )
    if wide := _wider_than_needed(network):
        yield wide
    if told := renamed(network, plan.dataset):
        yield told
    validation, limit = specification.data.validation, specification.train.limit_samples
    if (validation or limit) and (unseen := _unseen_classes(plan)):
        key = (
            "train.limit_samples keeps the first samples"
            if limit
            else "data.validation holds out the last samples"
        )
        yield (
            f"{key}, and those left to train on have none of the classes {some_of(unseen)}: "
            "shuffle sorted data in the factory"
        )
    if network.outline is not None and specification.run.alignment_every:
        yield "run.alignment_every is left out: it takes a process that holds the whole network, which is too large"
    if network.outline is not None and specification.model.balance == "time":
        yield "model.balance: time goes by layers alone: whole blocks aren't timed where the network is so large"


def _wider_than_needed(network: NetworkPlan) -> str:
    """Return a warning where the error of the head's input would have a small part of the numbers of the logits'."""
    feedback, shape = network.feedback, network.shape
    if len(network.blocks) == 1 or feedback.form != "broadcast" or source_of(feedback) != "logits":
        return ""
    try:
        other = source_shape(network.blocks[-1], replace(feedback, source="head_input", error_dim=None))
    except InputError:  # there is none that blocks could take
        return ""
    if len(other) - 1 != shape.position_dims or _FAR_WIDER * other[-1] > shape.error_dim:
        return ""
    return (
        f"feedback.source: logits sends {shape.error_dim:,} numbers per error, and each block learns what they mean to "
        f"it; the error of the head's input (feedback.source: head_input) has {other[-1]:,}, which blocks of that width "
        "need not learn"
    )


def _unseen_classes(plan: RunPlan) -> list[str]:
    """Return the classes that only test targets have, where all targets are in memory."""
    dataset = plan.dataset
    trained, tested = (_in_memory(split) for split in (dataset.train, dataset.test))
    if dataset.task != "classification" or trained is None or tested is None:
        return []
    if trained.is_floating_point() or tested.is_floating_point():  # shares of classes
        return []
    unseen = set(torch.unique(tested.long()).tolist()) - set(torch.unique(trained.long()).tolist())
    return [str(found) for found in sorted(unseen - {plan.network.training.ignore_index})]


def _in_memory(split: Split) -> Tensor | None:
    """Return all targets of a split, or None where they lie in no tensor."""
    split, chosen = in_whole(split, torch.arange(len(split)))
    if isinstance(split, TensorSplit):
        return split.target_data[chosen]
    if isinstance(split, ItemSplit) and split.collate is None and type(split.items) is TensorDataset:
        return split.items.tensors[1][chosen]
    return None


def _lacks_readout(plan: RunPlan) -> bool:
    """Whether ``auto`` would be another rule for the few numbers of the error if the loss were cross-entropy."""
    network, task = plan.network, plan.dataset.task
    shape, training = network.shape, network.training
    if training.loss in ("auto", *LOSSES) or shape.error_dim == shape.task_dim:
        return False
    given = replace(feedback_config(plan.specification), broadcast="fp32")
    other = resolve_feedback(given, shape, replace(training, loss="cross_entropy"), task)
    return other.q_rule == "readout" != network.feedback.q_rule
