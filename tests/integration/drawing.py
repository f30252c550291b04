"""Data that draw random numbers, and data of which not all counts, as a user's own modules make them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from lowdimfa.data import Dataset, TensorSplit

IGNORED = 0
TOKENS = 16
"""Of which each picture of 8 × 8 pixels has so many, of 4 pixels."""


class Turned(TorchDataset[tuple[Tensor, int]]):
    """Pictures turned by one draw from each kind of generator, with how often as their class."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        turns = (int(torch.randint(4, ())) + random.randrange(4) + int(numpy.random.randint(4))) % 4
        ramp = torch.arange(64.0).view(1, 8, 8) / 32 - 1
        return torch.rot90(ramp, turns, (1, 2)) + 0.1 * torch.randn(1, 8, 8), turns


class Streamed(IterableDataset[tuple[Tensor, int]]):
    """The same in an order that is drawn too, from a buffer, and differs from epoch to epoch."""

    def __init__(self, samples: int, buffer: int = 8) -> None:
        self.items, self.buffer, self.epoch = Turned(samples), buffer, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        held = [(torch.full((1, 8, 8), self.epoch / 8), self.epoch % 4)]
        for index in range(self.items.samples - 1):
            held.append(self.items[index])
            if len(held) > self.buffer:
                yield held.pop(random.randrange(len(held)))
        random.shuffle(held)
        yield from held


def streamed(samples: int = 200, test: int = 300) -> tuple[Streamed, Streamed]:
    """Return training and test samples that come one after the other."""
    return Streamed(samples), Streamed(test)


def turned(samples: int = 300) -> tuple[Turned, Turned]:
    """Return training and test samples."""
    return Turned(samples), Turned(samples)


def padded() -> Dataset:
    """Return texts of tokens, each with its class, behind which padding begins sooner or later."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 10, (300, TOKENS), generator=generator)
    lengths = torch.randint(0, TOKENS + 1, (300, 1), generator=generator)
    targets = tokens.masked_fill(torch.arange(TOKENS) >= lengths, IGNORED)
    split = TensorSplit(functional.one_hot(tokens, 10).float(), targets)
    return Dataset("padded", split, split, "tokens")


def tagger() -> torch.nn.Sequential:
    """Return a model that has a class for each token."""
    widths = (10, 12, 12, 10)
    return torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(*pair), torch.nn.Tanh()) for pair in pairwise(widths))
    )
