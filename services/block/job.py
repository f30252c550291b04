"""What a block's process is told: plain data, from which it plans its part of the same network as every other process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from lowdimfa.data.base import Task
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.large import build_some
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.plan import Example, NetworkPlan, RunPlan, make_network_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.sparse import Share


@dataclass(frozen=True)
class BlockJob:
    """One block of one run.

    Attributes
    ----------
    run
        Identifier of the run, new with every start.
    run_dir
        Where timeline and checkpoints go; the same path in every process of the run.
    index
        Of the block.
    specification
        The whole specification, as plain data.
    boundaries
        Names of the layers at which the second and later blocks start.
    input_shape, input_dtype
        Of one sample of the network's inputs.
    task
        Kind of the data's targets, on which the feedback's default rule depends.
    total_steps
        Optimiser steps of the whole run.
    evaluation_batches
        Batches of the test split.
    user_code
        The files beside the specification.
    rank
        Which replica of the block this is.
    shapes, share
        Of a large network: the plan without layers, and how to build those of this block.
    """

    run: str
    run_dir: str
    index: int
    specification: dict[str, Any]
    boundaries: list[str]
    input_shape: tuple[int, ...]
    input_dtype: str
    task: Task
    total_steps: int
    evaluation_batches: int
    user_code: UserCode
    rank: int = 0
    shapes: NetworkPlan | None = None
    share: Share | None = None

    @classmethod
    def of(cls, plan: RunPlan, seat: Seat, run: str, run_dir: str, user_code: UserCode) -> Self:
        """Return the job of one worker of a planned run."""
        network, own = plan.network, plan.network.blocks[seat.block]
        outline = network.outline
        return cls(
            run=run,
            run_dir=run_dir,
            index=seat.block,
            rank=seat.rank,
            specification=plan.specification.model_dump(),
            boundaries=plan.network.boundaries,
            input_shape=plan.example.shape,
            input_dtype=str(plan.example.dtype).removeprefix("torch."),
            task=plan.example.task,
            total_steps=plan.network.training.total_steps,
            evaluation_batches=plan.reader.evaluation_batches,
            user_code=user_code,
            shapes=None if outline is None else network.shapes,
            share=None if outline is None else outline.share([layer.name for layer in own.layers]),
        )

    @property
    def name(self) -> str:
        """Name of the run, as metrics label it."""
        return Path(self.run_dir).name

    @property
    def seat(self) -> Seat:
        """Which of the run's workers this is."""
        return Seat(self.index, self.rank)

    def parsed(self) -> Specification:
        """Return the specification."""
        return parse_specification(self.specification, "the run's specification")

    def network(self) -> NetworkPlan:
        """Plan the network as the trainer did, or take its plan; of a large network only this block has layers."""
        if self.shapes is not None and self.share is not None:
            blocks = list(self.shapes.blocks)
            make = partial(build_model, self.parsed())
            blocks[self.index] = build_some(make, self.share, blocks[self.index])
            return replace(self.shapes, blocks=blocks)
        example = Example(self.input_shape, getattr(torch, self.input_dtype), self.task)
        return make_network_plan(self.parsed(), example, self.total_steps, self.boundaries)
