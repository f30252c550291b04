"""Tickets name micro-batches; seeds derived from them make every random draw reproducible (`lowdimfa.generators`)."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


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
