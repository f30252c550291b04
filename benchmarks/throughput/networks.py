"""The networks on which speed is compared, each as the specification that every system builds its model from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lowdimfa.data import Dataset, TensorSplit, tokens
from lowdimfa.data.splits import SubSplit
from lowdimfa.models import cnn
from lowdimfa.tickets import derive_seed

STEPS = 1_000_000
"""Length of the runs as their schedules see it; no figure is measured over all of it."""


@dataclass(frozen=True)
class Network:
    """A network with its data.

    Attributes
    ----------
    title
        For people.
    model, data
        Sections of a specification: factory and arguments.
    real_model, real_data
        The same kind of network on real data, for the time to an accuracy.
    batch_size, microbatches
        Of a step; with more blocks than that the batch is cut into as many micro-batches as there are blocks.
    feedback
        Section of this runtime's specification.
    perplexity
        Whether its score on real data is that, and not the accuracy.
    steps_between, most_steps
        On real data: from one look at the test split to the next, and in all.
    """

    title: str
    model: dict[str, Any]
    data: dict[str, Any]
    real_model: dict[str, Any]
    real_data: dict[str, Any]
    batch_size: int = 256
    microbatches: int = 4
    feedback: dict[str, Any] = field(default_factory=dict)
    perplexity: bool = False
    steps_between: int = 10
    most_steps: int = 400

    @property
    def score_name(self) -> str:
        """What it is trained for."""
        return "perplexity" if self.perplexity else "accuracy"

    def parts(self, blocks: int) -> int:
        """Return the micro-batches of a step: a pipeline needs about as many as it has stages."""
        return max(self.microbatches, blocks)

    def specification(
        self,
        blocks: int,
        staleness: int = 0,
        *,
        real: bool = False,
        train: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        placement: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the specification of a run, as plain data; the last three are added to its sections."""
        return {
            "model": (self.real_model if real else self.model) | {"blocks": blocks},
            "data": self.real_data if real else self.data,
            "feedback": self.feedback,
            "train": {
                "steps": STEPS,
                "batch_size": self.batch_size,
                "microbatches": self.parts(blocks),
                "staleness": staleness,
                "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 1e-3, "fused": True}},
            }
            | (train or {}),
            "run": {"evaluate_every_epochs": 0, "tensorboard": False} | (run or {}),
            "placement": {"threads_per_block": 1} | (placement or {}),
        }


def convolutions(
    in_channels: int, channels: Sequence[int], classes: int, image_size: int, convs_per_block: int
) -> nn.Sequential:
    """Return `lowdimfa.models.cnn` with a cut possible before every convolution, not only where the image is halved.

    So that schedules with two stages per process have enough of them. The weights lie channels last, which is faster
    in every system.
    """
    whole = cnn(in_channels, channels, classes, image_size, convs_per_block)
    units: list[nn.Sequential] = []
    for stage in whole[:-1]:
        for part in stage:
            if isinstance(part, nn.Conv2d):
                units.append(nn.Sequential())
            units[-1].append(part)
    return nn.Sequential(*units, whole[-1]).to(memory_format=torch.channels_last)


def images(
    channels: int = 1,
    image_size: int = 28,
    classes: int = 10,
    samples: int = 4096,
    test_samples: int = 1024,
    seed: int = 0,
) -> Dataset:
    """Return made-up images of a class each: a fixed random pattern of the class, half hidden in noise.

    Inputs are float32 ``(channels, image_size, image_size)`` of unit variance; targets are the classes.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "images"))
    shape = (channels, image_size, image_size)
    patterns = torch.randn(classes, *shape, generator=generator)

    def split(count: int) -> TensorSplit:
        targets = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, *shape, generator=generator)
        return TensorSplit((patterns[targets] + noise) / 2**0.5, targets)

    return Dataset("images", split(samples), split(test_samples), "classification")


def sentences(vocabulary: int, context: int, samples: int = 1024, seed: int = 0) -> Dataset:
    """Return made-up tokens, drawn at random: inputs int64 ``(context,)``, targets the same moved on by one."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "sentences"))
    drawn = torch.randint(vocabulary, (2 * samples, context + 1), generator=generator)
    train, test = (
        TensorSplit(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in drawn.chunk(2)
    )
    return Dataset("sentences", train, test, "tokens")


def shakespeare_tokens(path: str, context: int, test_windows: int) -> Dataset:
    """Return Shakespeare in tokens, `lowdimfa.data.tokens`, with so many windows of the test split, evenly spread."""
    whole = tokens(path, context)
    chosen = torch.arange(test_windows) * len(whole.test) // test_windows
    return replace(whole, test=SubSplit(whole.test, chosen))


def _mlp(in_features: int, width: int, depth: int) -> dict[str, Any]:
    arguments = {"in_features": in_features, "width": width, "depth": depth, "classes": 10}
    return {"factory": "lowdimfa.models:mlp", "args": arguments}


def _cnn(channels: Sequence[int], image_size: int) -> dict[str, Any]:
    arguments = {"in_channels": 1, "classes": 10, "image_size": image_size, "convs_per_block": 2}
    return {
        "factory": "benchmarks.throughput.networks:convolutions",
        "args": arguments | {"channels": list(channels)},
    }


_VOCABULARY, _CONTEXT = 2048, 64
_TRANSFORMER: dict[str, Any] = {
    "factory": "lowdimfa.models:char_transformer",
    "args": {"vocabulary": _VOCABULARY, "context": _CONTEXT, "width": 128, "depth": 8, "heads": 4},
}
_TOKENS: dict[str, Any] = {
    "factory": "benchmarks.throughput.networks:shakespeare_tokens",
    "args": {
        "path": f"~/.cache/lowdimfa/data/shakespeare-{_VOCABULARY}",
        "context": _CONTEXT,
        "test_windows": 512,
    },
}
_SENTENCES: dict[str, Any] = {
    "factory": "benchmarks.throughput.networks:sentences",
    "args": {"vocabulary": _VOCABULARY, "context": _CONTEXT},
}
_DIGITS: dict[str, Any] = {"factory": "lowdimfa.data:digits"}

NETWORKS = {
    "mlp": Network(
        "MLP with 8 hidden layers of 1024 units",
        _mlp(1024, 1024, 9),
        {"factory": "lowdimfa.data:teacher", "args": {"in_features": 1024}},
        _mlp(64, 1024, 9),
        _DIGITS,
    ),
    "cnn": Network(
        "CNN with 8 convolutions of 16 to 128 channels, images of 28×28",
        _cnn((16, 32, 64, 128), 28),
        {"factory": "benchmarks.throughput.networks:images"},
        _cnn((32, 64, 128), 8),
        _DIGITS,
    ),
    "lm": Network(
        "language model of 8 layers, width 128, in windows of 64 tokens of a vocabulary of 2,048",
        _TRANSFORMER,
        _SENTENCES,
        _TRANSFORMER,
        _TOKENS,
        batch_size=32,
        feedback={"source": "head_input"},
        perplexity=True,
        steps_between=50,
        most_steps=2000,
    ),
    "tiny": Network(
        "CNN with 4 convolutions of 8 channels, images of 8×8, to try the benchmark itself",
        _cnn((8, 8), 8),
        _DIGITS,
        _cnn((8, 8), 8),
        _DIGITS,
    ),
}
