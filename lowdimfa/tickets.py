"""Tickets name micro-batches; seeds derived from them make every random draw reproducible."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy
import torch


class Ticket(NamedTuple):
    """One micro-batch of one optimiser step.

    Attributes
    ----------
    step
        Optimiser step, counted from 0 over the whole run.
    microbatch
        Position in the step's batch, from 0.
    """

    step: int
    microbatch: int

    def __str__(self) -> str:
        return f"step {self.step}, micro-batch {self.microbatch}"


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one named purpose.

    No random state has to be saved or shared: a draw depends only on the run's seed and on what it is for, so a
    resumed run, and a block in another process, draw the same numbers.
    """
    text = ":".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


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
