"""The default random generators, which a user's code may draw from: seeded, or left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def seed_generators(seed: int, device: torch.device | None = None) -> None:
    """Seed the default generators that a user's code may draw from: torch's (of a GPU too), NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def unchanged_generators(device: torch.device | None = None) -> Iterator[None]:
    """Leave the generators that `seed_generators` seeds as they were, whatever is drawn or seeded in between."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


@contextmanager
def reproducible(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let a user's code draw the same numbers in every process, and leave the generators as they were."""
    with unchanged_generators(device):
        seed_generators(seed, device)
        yield
