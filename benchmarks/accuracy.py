"""Accuracy of the feedback rules against backpropagation, on the same networks, data order and schedule.

``python -m benchmarks.accuracy --networks cnn,mlp --seeds 3`` trains everything in this process. Each method's
learning rate comes from one small grid and is chosen on the last sixth of the training samples; the test split is
seen only by the final runs. Two figures are reported: with each method's own rate, and with backpropagation's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.reporting import environment, markdown_table, mean_and_spread, write_result
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.data import SHAKESPEARE_VOCABULARY, BatchOrder, Dataset, fashion_mnist, shakespeare
from lowdimfa.head import Evaluation
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
    model
        Import path of the factory, and its arguments.
    blocks
        How many, or the layers at which the second and later ones start.
    samples
        Training samples: the first so many of the split.
    limits
        Largest gap to backpropagation, in the score's unit, that counts as reached, by method.
    score
        ``accuracy (%)``, or ``bits per character``.
    """

    model: Callable[..., nn.Sequential]
    arguments: tuple[Any, ...]
    data: Callable[[], Dataset]
    data_text: str
    blocks: int | tuple[str, ...]
    samples: int
    epochs: int
    limits: Mapping[str, float]
    methods: tuple[str, ...] = tuple(METHODS)
    score: str = "accuracy (%)"

    @property
    def steps(self) -> int:
        """Optimiser steps of one run."""
        return self.epochs * (self.samples // BATCH_SIZE)

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a loss."""
        return self.score == "bits per character"

    def score_of(self, evaluation: Evaluation) -> float:
        """Return the score of an evaluation."""
        if self.lower_is_better:
            return evaluation.loss / math.log(2)
        return 100 * (evaluation.accuracy or 0.0)

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        return {
            "model": f"lowdimfa.models.{self.model.__name__}{self.arguments}",
            "data": self.data_text,
            "blocks": self.blocks,
            "samples": self.samples,
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": BATCH_SIZE,
            "microbatches": 1,
            "optimizer": f"AdamW, weight_decay {WEIGHT_DECAY}, for W and Q",
            "scheduler": "OneCycleLR, max_lr the rate",
            "rates": RATES,
            "validation": f"the last {VALIDATION:.4f} of the training split, first seed",
            "score": self.score,
            "feedback": {method: asdict(METHODS[method]) for method in self.methods},
        }


_fashion = cache(fashion_mnist)
_characters = len(SHAKESPEARE_VOCABULARY)

SETTINGS: dict[str, Setting] = {
    "cnn": Setting(
        cnn,
        (1, (32, 64, 128), 10, 28),
        _fashion,
        "Fashion-MNIST",
        blocks=4,
        samples=10_000,
        epochs=3,
        limits={"hebbian": 1.5, "probed": 1.2},
    ),
    "mlp": Setting(
        mlp,
        (784, 256, 4, 10),
        _fashion,
        "Fashion-MNIST",
        blocks=4,
        samples=20_000,
        epochs=3,
        limits={"hebbian": 1.0, "probed": 1.0},
    ),
    "vit": Setting(
        vit,
        (28, 7, 1, 64, 4, 4, 10),
        _fashion,
        "Fashion-MNIST",
        blocks=("2", "3", "4", "5"),  # the first has the embedding and an encoder block
        samples=20_000,
        epochs=6,
        limits={"hebbian": 1.5, "probed": 1.5},
        methods=("backprop", "hebbian", "probed"),
    ),
    "char": Setting(
        char_transformer,
        (_characters, 64, 64, 2, 4),
        cache(partial(shakespeare, 64, limit_chars=2_900_000)),
        "the first 2,900,000 characters of Shakespeare, in windows of 64",
        blocks=("2", "3"),
        samples=32_000,
        epochs=1,
        limits={"hebbian": 0.3},
        methods=("backprop", "hebbian", "probed", "fixed"),
        score="bits per character",
    ),
}


@dataclass(frozen=True)
class Run:
    """What one training run gave: accuracy in percent, or for text bits per character."""

    method: str
    rate: float
    seed: int
    validation: float
    test: float


class Comparison:
    """All runs on one network; a run is made once, however often it is asked for."""

    def __init__(self, name: str, seeds: int) -> None:
        self.name = name
        self.setting = SETTINGS[name]
        self.seeds = range(seeds)
        self._runs: dict[tuple[str, float, int], Run] = {}

    def run(self, method: str, rate: float, seed: int) -> Run:
        """Return the run of a method, training it if need be."""
        key = method, rate, seed
        if key not in self._runs:
            self._runs[key] = run = train(self.setting, method, rate, seed)
            print(
                f"{self.name} {method} rate {rate} seed {seed}: {run.test:.2f}", file=sys.stderr, flush=True
            )
        return self._runs[key]

    def best_rate(self, method: str) -> float:
        """Return the rate of the grid that is best on the validation split, with the first seed."""
        sign = -1 if self.setting.lower_is_better else 1
        return max(RATES, key=lambda rate: sign * self.run(method, rate, 0).validation)

    def scores(self, method: str, rate: float) -> list[float]:
        """Return the scores on the test split, one per seed."""
        return [self.run(method, rate, seed).test for seed in self.seeds]

    def gap(self, scores: Sequence[float], reference: Sequence[float]) -> float:
        """Return how much worse the mean is than that of the reference; negative if it is better."""
        best, other = statistics.fmean(reference), statistics.fmean(scores)
        return other - best if self.setting.lower_is_better else best - other

    def result(self) -> dict[str, Any]:
        """Make all runs, and return them with what they amount to and the configuration that made them."""
        common = self.best_rate("backprop")
        reference = self.scores("backprop", common)
        methods = {}
        for method in self.setting.methods:
            own = self.best_rate(method)
            scores, same = self.scores(method, own), self.scores(method, common)
            methods[method] = {
                "rate": own,
                "scores": scores,
                "gap": self.gap(scores, reference),
                "common_rate": common,
                "common_rate_scores": same,
                "common_rate_gap": self.gap(same, reference),
                "limit": self.setting.limits.get(method),
            }
        return {
            "benchmark": "accuracy",
            "network": self.name,
            "command": f"python -m benchmarks.accuracy --networks {self.name} --seeds {len(self.seeds)} --write",
            "configuration": self.setting.configuration(),
            "environment": environment(),
            "without_context": without_context(self.setting),
            "methods": methods,
            "runs": [asdict(run) for run in self._runs.values()],
        }


def train(setting: Setting, method: str, rate: float, seed: int) -> Run:
    """Train one network from scratch, and evaluate it on the validation and the test split."""
    whole = setting.data()
    held_out = whole.with_validation(VALIDATION)
    dataset = held_out.limited(setting.samples)
    order = BatchOrder(setting.samples, BATCH_SIZE, 1, seed)
    update = UpdateConfig(
        FactoryConfig("torch.optim.AdamW", {"lr": rate, "weight_decay": WEIGHT_DECAY}),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": rate}),
    )
    torch.manual_seed(seed)
    network = decouple(
        setting.model(*setting.arguments),
        dataset.train.inputs(torch.arange(2)),
        blocks=setting.blocks,
        total_steps=setting.steps,
        feedback=METHODS[method],
        training=TrainingConfig(total_steps=setting.steps, seed=seed, update=update),
        task=dataset.task,
    )
    InProcessTrainer(network, dataset, order).run(0, setting.steps)
    validation, test = (
        setting.score_of(InProcessTrainer(network, data, order).evaluate()) for data in (held_out, whole)
    )
    return Run(method, rate, seed, validation, test)


def without_context(setting: Setting) -> float:
    """Return the test score of a model that knows only how often each class or character occurs in training."""
    data = setting.data().with_validation(VALIDATION).limited(setting.samples)
    whole = setting.data().test
    seen, asked = (split.targets(torch.arange(len(split))).flatten() for split in (data.train, whole))
    shares = torch.bincount(seen, minlength=int(asked.max()) + 1).double() + 1e-3
    shares /= shares.sum()
    if setting.lower_is_better:
        return float(-shares.log2()[asked].mean())
    return 100 * float((asked == shares.argmax()).double().mean())


def table(result: Mapping[str, Any]) -> str:
    """Return one network's result as a table."""
    rows = []
    for method, found in result["methods"].items():
        limit = "" if found["limit"] is None else f"{found['limit']:.1f}"
        own = (f"{found['rate']:g}", mean_and_spread(found["scores"]), f"{found['gap']:.2f}")
        common = (mean_and_spread(found["common_rate_scores"]), f"{found['common_rate_gap']:.2f}")
        rows.append((method, *own, *common, limit))
    score = result["configuration"]["score"]
    rate = result["methods"]["backprop"]["rate"]
    header = ("method", "own rate", score, "gap", f"{score}, rate {rate:g}", "gap", "limit")
    return markdown_table(header, rows)


def main() -> None:
    """Run the comparisons that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--networks", default=",".join(SETTINGS), help="some of %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="runs per figure (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with the results as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the results in benchmarks/results")
    arguments = parser.parse_args()
    results = {}
    with computing_threads(arguments.threads):
        for name in arguments.networks.split(","):
            results[name] = Comparison(name, arguments.seeds).result()
            print(f"\n{name}: {results[name]['configuration']['model']}\n{table(results[name])}", flush=True)
            if arguments.write:
                write_result(f"accuracy-{name}", results[name])
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
