"""Train one network by one rule; the test split is seen only by runs with the chosen rate, as in the claims."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import nn

from benchmarks.claims.claim import RunSettings
from benchmarks.claims.settings import VALIDATION, Update
from benchmarks.claims.training import Trained
from benchmarks.claims.trials import Run, Task, Trial, made
from benchmarks.gap.networks import Network
from benchmarks.gap.rules import Rule
from lowdimfa.config import FactoryConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import BatchOrder, Dataset, Split
from lowdimfa.data.base import EVALUATION_SAMPLES
from lowdimfa.data.reading import evaluation_batches
from lowdimfa.errors import NotFiniteError
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.trainer import InProcessTrainer


class BlockTrial(Trial):
    """One run of a network in blocks."""

    setting: Network  # type: ignore[assignment]
    method: Rule  # type: ignore[assignment]

    @cached_property
    def trained(self) -> Trained:
        """The trained network; in place of one that has diverged what has the worst score, and isn't chosen."""
        try:
            return train(self.setting, self.method, self.update, self.seed, self.settings.device)
        except NotFiniteError:
            return Trained(nn.Sequential(), lambda split: self.setting.worst)


def made_on(networks: Sequence[Network], tasks: Sequence[Task], settings: RunSettings) -> list[Run]:
    """Make the runs of all tasks, once what the networks learn, and go on from, is there."""
    for network in networks:
        network.dataset()
        network.configuration()
    return made(tasks, settings)


def runs_of(network: Network, rule: Rule, settings: RunSettings) -> tuple[Run, ...]:
    """Train with every entry of the grid, then with the one that is best in validation on every other seed.

    Where that is the lowest or the highest rate, the grid goes on beyond it, for every rule as far.
    """
    tried = {update: BlockTrial(network, rule, update, 0, settings) for update in network.grid}

    def validation(update: Update) -> float:
        return network.sign * tried[update].validated().validation

    best = max(tried, key=validation)
    while (further := network.beyond(best, list(tried))) is not None:
        tried[further] = BlockTrial(network, rule, further, 0, settings)
        best = max(tried, key=validation)
    runs = [trial.tested() if update == best else trial.validated() for update, trial in tried.items()]
    return (*runs, *runs_with(network, rule, best, range(1, settings.seeds), settings))


def runs_with(network: Network, rule: Rule, update: Update, seeds: range, settings: RunSettings) -> list[Run]:
    """Train with one entry of the grid and the given seeds."""
    return [BlockTrial(network, rule, update, seed, settings).tested() for seed in seeds]


def train(network: Network, rule: Rule, update: Update, seed: int, device: torch.device) -> Trained:
    """Train one network from scratch; the test split isn't touched."""
    dataset = network.dataset().with_validation(VALIDATION).limited(network.samples)
    torch.manual_seed(seed)
    model = network.network().to(device)
    blocks = in_blocks(model, dataset, rule, update, network.steps, seed)
    order = BatchOrder(network.samples, network.batch_size, 1, seed)
    InProcessTrainer(blocks, dataset, order).run(0, network.steps)
    return Trained(model, partial(_score, network, blocks, device))


def in_blocks(
    model: nn.Sequential, dataset: Dataset, rule: Rule, update: Update, total_steps: int, seed: int
) -> DecoupledNetwork:
    """Cut a model into blocks that learn by a rule, with its optimiser and a one-cycle schedule of so many steps."""
    arguments = {"lr": update.rate, "weight_decay": update.weight_decay, "fused": True}
    optimisation = UpdateConfig(
        FactoryConfig("lowdimfa.muon:Muon" if rule.muon else "torch.optim.AdamW", arguments),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": update.rate}),
    )
    return decouple(
        model,
        dataset.train.inputs(torch.arange(2)).to(next(model.parameters()).device),
        blocks=rule.blocks,
        total_steps=total_steps,
        feedback=rule.feedback,
        training=TrainingConfig(
            total_steps=total_steps, seed=seed, update=optimisation, activations=rule.activations
        ),
        task=dataset.task,
    )


def _score(network: Network, blocks: DecoupledNetwork, device: torch.device, split: Split) -> float:
    batches = (
        (split.inputs(indices).to(device), split.targets(indices).to(device))
        for indices in evaluation_batches(split, EVALUATION_SAMPLES)
    )
    return network.score_of(blocks.evaluate(batches))
