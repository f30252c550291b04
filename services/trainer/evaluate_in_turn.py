"""The evaluation of a large network in one process, block after block, with memory for one at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch

from lowdimfa.build import build_block, build_head
from lowdimfa.formats import nbytes
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Evaluation, Head
from lowdimfa.network import computing_threads
from lowdimfa.partitioning import BlockPlan
from lowdimfa.services.block.devices import block_device
from lowdimfa.services.run.data import read_ahead
from lowdimfa.services.run.large import build_some
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.state import load_stage
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.stage import Stage
from lowdimfa.values import Types, entering

WAITING = 1 << 30
"""Bytes of activations that wait for the next block, where those of one batch are no more."""


def evaluate_in_turn(plan: RunPlan, manifest: Manifest) -> Evaluation:
    """Evaluate a checkpoint to the bits of `lowdimfa.network.DecoupledNetwork.evaluate`.

    As many batches as may wait go through a block before the next is built, and all through the head, which stays.

    Parameters
    ----------
    plan
        With an outline of its network in place of weights.
    manifest
        Of the checkpoint.

    Raises
    ------
    InputError
        The factory builds something else than when the network was planned, or the checkpoint is of another network.
    """
    specification, blocks = plan.specification, plan.network.blocks
    device = block_device(specification.placement.gpus_per_block)
    totals = Evaluation()
    with ExitStack() as stack:
        stack.enter_context(unchanged_generators())
        stack.enter_context(computing_threads(specification.placement.threads_of(0)))
        reader = read_ahead(specification, plan.reader, plan.network.training.total_steps)
        stack.callback(reader.close)
        head = cast(Head, _built(plan, manifest, blocks[-1], device))
        for numbers in _groups(plan, reader.evaluation_batches):
            samples = [reader.evaluation_batch(number) for number in numbers]
            waiting = [entering(each.inputs()).to(device) for each in samples]
            for block in blocks[:-1]:
                stage = _built(plan, manifest, block, device)
                for place, number in enumerate(numbers):
                    with unchanged_generators(device):
                        waiting[place] = stage.evaluate(waiting[place], number)
                del stage
                gc.collect()  # with threads of its own it refers to itself; its memory is for the next one
            for number, each, inputs in zip(numbers, samples, waiting, strict=True):
                with unchanged_generators(device):
                    head.evaluate_outputs(inputs, each.targets().to(device), totals, number)
        totals.metrics = head.metrics.compute()
    return totals


def _built(plan: RunPlan, manifest: Manifest, block: BlockPlan, device: torch.device) -> Stage:
    """Build a block as its process would, with its state in the checkpoint."""
    network = plan.network
    assert network.outline is not None
    own = build_some(partial(build_model, plan.specification), network.outline, block)
    arguments = own, network.shape, network.feedback, network.training
    stage: Stage = (
        build_head(*arguments, plan.dataset.task, device)
        if block is network.blocks[-1]
        else build_block(*arguments, device)
    )
    load_stage(stage, manifest)
    use_own_threads([stage], plan.specification.placement)
    return stage


def _groups(plan: RunPlan, batches: int) -> Iterator[range]:
    """Yield the numbers of batches that go through the blocks together."""
    largest = max(_nbytes(types) for block in plan.network.blocks for types in (block.inputs, block.outputs))
    size = max(1, WAITING // max(1, largest * plan.order.evaluation_size))
    for first in range(0, batches, size):
        yield range(first, min(first + size, batches))


def _nbytes(types: Types) -> int:
    return sum(map(nbytes, types.values()))
