"""The sections ``feedback`` and ``train``, and the order of the data, as the learning library takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowdimfa.config import FactoryConfig, FeedbackConfig, RankConfig, TrainingConfig, UpdateConfig
from lowdimfa.data.base import BatchOrder
from lowdimfa.data.splits import Split
from lowdimfa.data.streams import StreamSplit
from lowdimfa.network import computing_threads
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.given import opened
from lowdimfa.services.spec.learning import BlockOptimizer, RankSection
from lowdimfa.services.spec.placement import PlacementSection
from lowdimfa.services.spec.section import Rule, taken
from lowdimfa.stage import Stage

_COMPUTING = {"forward", "probe", "receive_error", "step", "evaluate", "evaluate_outputs"}
"""Methods of blocks and heads in which they compute."""


def feedback_config(specification: Specification) -> FeedbackConfig:
    """Return the ``feedback`` section."""
    given = taken(specification.feedback, FeedbackConfig)
    for key, value in given.items():
        if isinstance(value, Rule):
            given[key] = FactoryConfig(opened(value.factory), dict(value.args))
    return FeedbackConfig(**given)


def training_config(specification: Specification, total_steps: int) -> TrainingConfig:
    """Return what the blocks need to know of the ``train`` section."""
    train = specification.train

    def update(section: Any, key: str) -> UpdateConfig:
        def chosen(name: str) -> tuple[Any, str]:
            """Return a setting and its key: the section's own, or that of all blocks."""
            own = getattr(section, name)
            if isinstance(own, BlockOptimizer):
                own = own.beside(train.optimizer)
            return (own, f"{key}.{name}") if own is not None else (getattr(train, name), f"train.{name}")

        optimizer, scheduler, (grad_clip, clip_key) = map(chosen, ("optimizer", "scheduler", "grad_clip"))
        return UpdateConfig(
            _factory(*optimizer), None if scheduler[0] is None else _factory(*scheduler), grad_clip, clip_key
        )

    given = train.activations
    activations = RankConfig(given.rank) if isinstance(given, RankSection) else given
    return TrainingConfig(
        total_steps=total_steps,
        **taken(train, TrainingConfig) | {"loss": opened(train.loss), "activations": activations},
        update=update(train, "train"),
        average=None if train.average is None else train.average.decay,
        metrics={name: _factory(each, "") for name, each in train.named_metrics.items()},
        per_block={
            index: update(section, f"train.per_block.{index}") for index, section in train.per_block.items()
        },
    )


def use_own_threads(stages: Sequence[Stage], placement: PlacementSection) -> None:
    """Let blocks of one process compute with the threads that each would have in a process of its own."""
    if isinstance(placement.threads_per_block, dict):
        for stage in stages:
            own = computing_threads(placement.threads_of(stage.index))
            for name in _COMPUTING.intersection(dir(stage)):
                setattr(stage, name, own(getattr(stage, name)))


def batch_order(specification: Specification, split: Split) -> BatchOrder:
    """Return the order in which a run draws the training samples."""
    train, last_batch = specification.train, specification.data.last_batch
    shuffled = not isinstance(split, StreamSplit)
    return BatchOrder(len(split), train.batch_size, train.microbatches, train.seed, last_batch, shuffled)


def _factory(section: Any, key: str) -> FactoryConfig:
    return FactoryConfig(opened(section.factory), dict(section.args), key)
