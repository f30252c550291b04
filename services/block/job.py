"""What a block's process is told: plain data, from which it plans its part of the same network as every other process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.example import Example
from lowdimfa.services.run.large import build_some
from lowdimfa.services.run.model import build_model
from lowdimfa.services.run.network_plan import NetworkPlan
from lowdimfa.services.run.plan import RunPlan, make_network_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.run.weights import Origin, Weights
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.sparse import Share

LEAST_TIMES = 3.0
"""Times as long as for a micro-batch that a block may take for an evaluation batch, however small that is."""


def evaluation_times(samples: int, microbatch: int) -> float:
    """Return how many times as long as for a micro-batch of some samples a block may take for an evaluation batch."""
    return max(LEAST_TIMES, samples / microbatch)


@dataclass(frozen=True)
class BlockJob:
    """One block of one run.

    Attributes
    ----------
    run
        Identifier of the run, new with every start.
    run_dir
        Where timeline and checkpoints go: the same path in every process of the run, or an address.
    index
        Of the block.
    specification
        The whole specification, as plain data.
    boundaries
        Names of the layers at which the second and later blocks start.
    example
        Of the data, for the plan.
    total_steps
        Optimiser steps of the whole run.
    evaluation_batches, evaluation_size
        Batches of the test split, and samples of each.
    user_code
        The files beside the specification.
    rank
        Which replica of the block this is.
    weights
        Where the trainer found the weights with which the run begins; None if not in files.
    shapes, share
        Of a large network: the plan without layers, and how to build those of this block.
    node
        Address of the worker's machine as other machines reach it.
    """

    run: str
    run_dir: str
    index: int
    specification: dict[str, Any]
    boundaries: list[str]
    example: Example
    total_steps: int
    evaluation_batches: int
    evaluation_size: int
    user_code: UserCode
    rank: int = 0
    weights: Origin | None = None
    shapes: NetworkPlan | None = None
    share: Share | None = None
    node: str = "127.0.0.1"

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
            example=plan.example,
            total_steps=plan.network.training.total_steps,
            evaluation_batches=plan.reader.evaluation_batches,
            evaluation_size=plan.order.evaluation_size,
            user_code=user_code,
            weights=network.weights,
            shapes=None if outline is None else network.shapes,
            share=None if outline is None else outline.share([layer.name for layer in own.layers]),
        )

    @property
    def evaluating(self) -> float:
        """How many times as long as for a micro-batch a block may take for an evaluation batch, or for the metrics."""
        train = self.parsed().train
        return evaluation_times(self.evaluation_size, train.batch_size // train.microbatches)

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
        specification = self.parsed()
        weights = None if self.weights is None else Weights.of(specification, self.weights)
        if self.shapes is None or self.share is None:
            return make_network_plan(
                specification, self.example, self.total_steps, self.boundaries, weights, own=self.index
            )
        blocks = list(self.shapes.blocks)
        own = blocks[self.index] = build_some(
            partial(build_model, specification), self.share, blocks[self.index]
        )
        if weights is not None:
            weights.load_alone(own)
        return replace(self.shapes, blocks=blocks)
