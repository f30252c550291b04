"""Accuracy of the feedback rules against backpropagation, on the same networks, data order and schedule.

``python -m benchmarks.accuracy --networks cnn,mlp --seeds 3`` trains everything in this process. Each method's
learning rate comes from one small grid and is chosen on the last sixth of the training samples; the test split is
seen only by the final runs. Two figures are reported: with each method's own rate, and with backpropagation's.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.reporting import environment, markdown_table, mean_and_spread, write_result
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Dataset, fashion_mnist, shakespeare
from lowdimfa.data.text import SHAKESPEARE_VOCABULARY
from lowdimfa.models import char_transformer, cnn, mlp, vit
from lowdimfa.network import computing_threads, decouple
from lowdimfa.trainer import InProcessTrainer

RATES = (1e-3, 2e-3, 4e-3)
VALIDATION = 1 / 6
BATCH_SIZE = 128
WEIGHT_DECAY = 0.01

METHODS: dict[str, FeedbackConfig] = {
    "backprop": FeedbackConfig(form="backprop"),
    "hebbian": FeedbackConfig(q_rule="hebbian"),
    "probed": FeedbackConfig(q_rule="probed"),
    "fixed": FeedbackConfig(q_rule="fixed"),
    "local": FeedbackConfig(form="local"),
}


@dataclass(frozen=True)
class Setting:
    """One network with its data and schedule.

    Attributes
    ----------
    samples
        Training samples, the first so many of the split.
    limits
        Largest gap to backpropagation that counts as reached, by method: points of accuracy or bits per character.
    """

    model: Callable[[], nn.Sequential]
    model_text: str
    data: Callable[[], Dataset]
    data_text: str
    blocks: int
    samples: int
    epochs: int
    limits: dict[str, float]
    methods: tuple[str, ...] = tuple(METHODS)

    @property
    def steps(self) -> int:
        """Optimiser steps of one run."""
        return self.epochs * (self.samples // BATCH_SIZE)


_IMAGES = {"data": cache(fashion_mnist), "data_text": "Fashion-MNIST"}
_VOCABULARY = len(SHAKESPEARE_VOCABULARY)

SETTINGS: dict[str, Setting] = {
    "cnn": Setting(
        partial(cnn, 1, [32, 64, 128], 10, 28),
        "cnn(1, [32, 64, 128], 10, 28)",
        blocks=4,
        samples=10_000,
        epochs=3,
        limits={"hebbian": 1.5, "probed": 1.2},
        **_IMAGES,
    ),
    "mlp": Setting(
        partial(mlp, 784, 256, 4, 10),
        "mlp(784, 256, 4, 10)",
        blocks=4,
        samples=20_000,
        epochs=3,
        limits={"hebbian": 1.0, "probed": 1.0},
        **_IMAGES,
    ),
    "vit": Setting(
        partial(vit, 28, 7, 1, 64, 4, 4, 10),
        "vit(28, 7, 1, 64, 4, 4, 10)",
        blocks=5,
        samples=20_000,
        epochs=6,
        limits={"hebbian": 1.5, "probed": 1.5},
        **_IMAGES,
    ),
    "char": Setting(
        partial(char_transformer, _VOCABULARY, 64, 64, 2, 4),
        f"char_transformer({_VOCABULARY}, 64, 64, 2, 4)",
        cache(partial(shakespeare, 64, limit_chars=2_900_000)),
        "Shakespeare, the first 2.9 million characters, windows of 64",
        blocks=3,
        samples=32_000,
        epochs=1,
        limits={},
    ),
}


@dataclass(frozen=True)
class Run:
    """What one training run gave.

    Attributes
    ----------
    score
        Accuracy in percent, or for text bits per character.
    """

    score: float
    loss: float
    seed: int
    rate: float


@dataclass
class Row:
    """One method on one network."""

    network: str
    method: str
    own_rate: list[Run]
    common_rate: list[Run]
    validation: dict[str, float] = field(default_factory=dict)


def train(setting: Setting, dataset: Dataset, feedback: FeedbackConfig, rate: float, seed: int) -> Run:
    """Train one network from scratch and evaluate it on the data set's test split."""
    dataset = dataset.limited(setting.samples)
    order = BatchOrder(setting.samples, BATCH_SIZE, 1, seed)
    update = UpdateConfig(
        FactoryConfig("torch.optim.AdamW", {"lr": rate, "weight_decay": WEIGHT_DECAY}),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": rate}),
    )
    training = TrainingConfig(total_steps=setting.steps, seed=seed, update=update)
    torch.manual_seed(seed)
    network = decouple(
        setting.model(),
        dataset.train.inputs(torch.arange(2)),
        blocks=setting.blocks,
        total_steps=setting.steps,
        feedback=feedback,
        training=training,
        task=dataset.task,
    )
    trainer = InProcessTrainer(network, dataset, order)
    trainer.run(0, setting.steps)
    result = trainer.evaluate()
    if dataset.task == "tokens":
        return Run(result.loss / math.log(2), result.loss, seed, rate)
    return Run(100 * (result.accuracy or 0.0), result.loss, seed, rate)
