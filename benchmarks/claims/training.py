"""One training loop for every network, rule and claim."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.claims.methods import Method
from benchmarks.claims.settings import VALIDATION, Setting, Update
from lowdimfa.chain import parameter_groups
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Split
from lowdimfa.data.base import EVALUATION_SAMPLES
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

Score = Callable[[Split], float]
"""Accuracy of a trained network on a split, in percent."""


@dataclass(frozen=True)
class Trained:
    """A trained network, what scores it, and what scores it as it was after the epoch that was best in validation.

    ``curve`` has the accuracy in validation after each epoch.
    """

    model: nn.Sequential
    score: Score
    score_best: Score | None = None
    curve: list[float] | None = None


class Loop:
    """The training of one network from scratch; the test split isn't touched."""

    def __init__(
        self, setting: Setting, method: Method, update: Update, seed: int, device: torch.device
    ) -> None:
        self.dataset = setting.dataset().with_validation(VALIDATION).limited(setting.samples)
        self._setting, self._device = setting, device
        self._order = BatchOrder(setting.samples, setting.batch_size, 1, seed)
        torch.manual_seed(seed)
        example = self.dataset.train.inputs(torch.arange(2))
        self.model = method.applied(setting.network(), example, seed).to(device).train()
        groups = _groups(self.model, method, update)
        self._optimizer = torch.optim.AdamW(groups, weight_decay=update.weight_decay, fused=True)
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=rates, total_steps=setting.steps
        )
        self._draws = torch.Generator().manual_seed(seed)

    def step(self, number: int) -> None:
        """Run one step."""
        indices = self._order.indices(Ticket(number, 0))
        inputs, targets = self.dataset.train.inputs(indices), self.dataset.train.targets(indices)
        if self._setting.is_augmented:
            inputs = augmented(inputs, self._draws)
        self._optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.model(inputs.to(self._device)), targets.to(self._device))
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._scheduler.step()


def train(setting: Setting, method: Method, update: Update, seed: int, device: torch.device) -> Trained:
    """Train one network from scratch, and keep what it was after its best epoch in validation too."""
    if method.rule == "local loss":
        return _train_local(setting, update, seed, device)
    loop = Loop(setting, method, update, seed, device)
    best, kept, curve = -1.0, loop.model.state_dict(), list[float]()
    for step in range(setting.steps):
        loop.step(step)
        if (step + 1) % setting.steps_per_epoch == 0 and setting.epochs > 1:
            found = accuracy(loop.model, device, loop.dataset.test)
            loop.model.train()
            curve.append(round(found, 3))
            if found > best:
                best, kept = found, deepcopy(loop.model.state_dict())
    return Trained(
        loop.model,
        partial(accuracy, loop.model, device),
        partial(_accuracy_with, loop.model, kept, device),
        curve or None,
    )


def _groups(model: nn.Module, method: Method, update: Update) -> Any:
    if method.is_factored and update.feedback_rate is not None:
        return parameter_groups(model, lr=update.rate, feedback_lr=update.feedback_rate)
    return [{"params": list(model.parameters()), "lr": update.rate}]


def seconds_per_step(setting: Setting, method: Method, device: torch.device, steps: int = 10) -> float:
    """Return how long a step takes, after three to warm up."""
    loop = Loop(setting, method, setting.grid[0], 0, device)
    for step in range(min(3, setting.steps)):
        loop.step(step)
    started = time.perf_counter()
    for step in range(min(steps, setting.steps)):
        loop.step(step)
    return (time.perf_counter() - started) / min(steps, setting.steps)


@dataclass(frozen=True)
class Augmented:
    """A split with other crops and flips in every epoch, by the default generator, which is seeded for each batch."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def inputs(self, indices: Tensor) -> Tensor:
        """Return augmented images."""
        images = self.split.inputs(indices)
        assert isinstance(images, Tensor)
        return augmented(images)

    def targets(self, indices: Tensor) -> Tensor:
        """Return their classes."""
        return self.split.targets(indices)


def augmented(images: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """Return images, ``(batch, channels, height, width)``, cropped out of 4 more pixels around, half of them flipped."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(9, (2, count, 1), generator=draws)
    columns = left + torch.arange(width)
    is_flipped = torch.randint(2, (count, 1), generator=draws) > 0
    columns = torch.where(is_flipped, columns.flip(1), columns)
    rows = top + torch.arange(height)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


@torch.no_grad()
def _accuracy_with(model: nn.Module, state: Mapping[str, Any], device: torch.device, split: Split) -> float:
    """Return the accuracy with another state, and put back the present one."""
    present = deepcopy(model.state_dict())
    model.load_state_dict(state)
    found = accuracy(model, device, split)
    model.load_state_dict(present)
    return found


@torch.no_grad()
def accuracy(model: nn.Module, device: torch.device, split: Split) -> float:
    """Return the accuracy in percent, in evaluation mode."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    for indices in evaluation_batches(split, EVALUATION_SAMPLES):
        predicted = model(split.inputs(indices).to(device)).argmax(-1)
        right += (predicted == split.targets(indices).to(device)).sum()
    return 100 * int(right) / len(split)


def _train_local(setting: Setting, asked: Update, seed: int, device: torch.device) -> Trained:
    """Train greedily, every stage of the model a block with a loss of its own."""
    dataset = setting.dataset().with_validation(VALIDATION).limited(setting.samples)
    if setting.is_augmented:
        dataset = replace(dataset, train=Augmented(dataset.train))
    order = BatchOrder(setting.samples, setting.batch_size, 1, seed)
    torch.manual_seed(seed)
    model = setting.network().to(device)
    update = UpdateConfig(
        FactoryConfig(
            "torch.optim.AdamW", {"lr": asked.rate, "weight_decay": asked.weight_decay, "fused": True}
        ),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": asked.rate}),
    )
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
        for indices in evaluation_batches(split, EVALUATION_SAMPLES)
    )
    return 100 * (network.evaluate(batches).accuracy or 0.0)
