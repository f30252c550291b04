"""The ``train`` section as the learning library takes it."""

from __future__ import annotations

from typing import Any

from lowdimfa.config import FactoryConfig, TrainingConfig, UpdateConfig
from services.spec import Specification


def training_config(specification: Specification, total_steps: int) -> TrainingConfig:
    """Return what the blocks need to know of the ``train`` section."""
    train = specification.train

    def update(section: Any) -> UpdateConfig:
        scheduler = section.scheduler if section.scheduler is not None else train.scheduler
        return UpdateConfig(
            _factory(section.optimizer or train.optimizer),
            None if scheduler is None else _factory(scheduler),
            section.grad_clip if section.grad_clip is not None else train.grad_clip,
        )

    return TrainingConfig(
        total_steps=total_steps,
        microbatches=train.microbatches,
        staleness=train.staleness,
        seed=train.seed,
        precision=train.precision,
        activations=train.activations,
        compiled=train.compile,
        loss=train.loss,
        ignore_index=train.ignore_index,
        update=update(train),
        per_block={index: update(section) for index, section in train.per_block.items()},
    )


def _factory(section: Any) -> FactoryConfig:
    return FactoryConfig(section.factory, dict(section.args))
