"""One training loop for every network, rule and claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.claims.methods import Method
from benchmarks.claims.settings import VALIDATION, Setting, Update
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Dataset, Split
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

Score = Callable[[Split], float]
"""Accuracy of a trained network on a split, in percent."""


@dataclass(frozen=True)
class Trained:
    """A trained network, and what scores it."""

    model: nn.Sequential
    score: Score


def train(setting: Setting, method: Method, update: Update, seed: int, device: torch.device) -> Trained:
    """Train one network from scratch; the test split isn't touched."""
    dataset = setting.dataset().with_validation(VALIDATION).limited(setting.samples)
    order = BatchOrder(setting.samples, setting.batch_size, 1, seed)
    torch.manual_seed(seed)
    model = setting.network()
    example = dataset.train.inputs(torch.arange(2))
    if method.rule == "local":
        return _train_local(setting, model.to(device), dataset, order, update, seed)
    model = method.applied(model, example, seed).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=update.rate, weight_decay=update.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=update.rate, total_steps=setting.steps)
    for step in range(setting.steps):
        indices = order.indices(Ticket(step, 0))
        inputs, targets = dataset.train.inputs(indices).to(device), dataset.train.targets(indices).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
    return Trained(model, partial(accuracy, model, device))


@torch.no_grad()
def accuracy(model: nn.Module, device: torch.device, split: Split) -> float:
    """Return the accuracy in percent, in evaluation mode."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    for indices in evaluation_batches(split, 1):
        predicted = model(split.inputs(indices).to(device)).argmax(-1)
        right += (predicted == split.targets(indices).to(device)).sum()
    return 100 * int(right) / len(split)


def _train_local(
    setting: Setting, model: nn.Sequential, dataset: Dataset, order: BatchOrder, asked: Update, seed: int
) -> Trained:
    """Train greedily, every stage of the model a block with a loss of its own."""
    update = UpdateConfig(
        FactoryConfig(
            "torch.optim.AdamW", {"lr": asked.rate, "weight_decay": asked.weight_decay, "fused": True}
        ),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": asked.rate}),
    )
    device = next(model.parameters()).device
    network = decouple(
        model,
        dataset.train.inputs(torch.arange(2)).to(device),
        blocks=len(model),
        total_steps=setting.steps,
        feedback=FeedbackConfig(form="local"),
        training=TrainingConfig(total_steps=setting.steps, seed=seed, update=update),
    )
    InProcessTrainer(network, dataset, order).run(0, setting.steps)
    return Trained(model, partial(_local_accuracy, network, device))


def _local_accuracy(network: DecoupledNetwork, device: torch.device, split: Split) -> float:
    batches = (
        (split.inputs(indices).to(device), split.targets(indices).to(device))
        for indices in evaluation_batches(split, 1)
    )
    return 100 * (network.evaluate(batches).accuracy or 0.0)
