"""What a specification leaves to the program, as numbers that follow from the rest of it, and from nothing else.

So every process, a run that is resumed, and both engines come to the same, and what a run keeps has the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any

AUTO = "auto"

LEAST_SAMPLES = 8
"""Of a micro-batch, unless replicas need more of them."""

_MANY = 8
_MOST = 1024
"""Replicas, and multiples of them, that are looked at: a text may come from anybody."""


def with_microbatches(values: Any) -> Any:
    """Return a specification's plain values with a number for ``train.microbatches: auto``.

    What is wrong in them stays, for whoever checks them.
    """
    train = _section(values, "train")
    if train.get("microbatches") != AUTO:
        return values
    return {**values, "train": {**train, "microbatches": microbatches(values)}}


def microbatches(values: Mapping[str, Any]) -> int:
    """Return in how many parts a batch is cut: a divisor of its size and a multiple of the replicas.

    All figures are simulated, with a core for each block, and parts that take 2 to 20 % of a batch's time however small
    they are. With ``staleness: s`` ``s + 1`` batches are under way: two blocks are busy with whole ones, and more with
    as many parts as leave a piece for each, ``(blocks − 1) / s`` but no more than 8: that is within a fifth of the best
    of 1 to 32 for 2 to 16 blocks. Without staleness 4 parts are within a sixth of it for 2 to 7 blocks, and 8 for more.
    """
    train, blocks = _section(values, "train"), _section(values, "model").get("blocks")
    batch, number = train.get("batch_size", 128), len(blocks) + 1 if isinstance(blocks, list) else blocks
    replicas = _section(values, "placement").get("replicas", 1)
    shared = lcm(*(one for one in _numbers(replicas) if isinstance(one, int) and 0 < one <= _MOST))
    if not isinstance(batch, int) or batch < 1 or not isinstance(number, int) or batch % shared:
        return shared
    wanted = 1
    if number > 1 and _section(values, "feedback").get("form", "broadcast") == "broadcast":
        wanted = _parts(number, train.get("staleness", 0))
    wanted = min(wanted, max(1, batch // LEAST_SAMPLES))
    fitting = [part for part in range(shared, min(batch, _MOST * shared) + 1, shared) if batch % part == 0]
    return min(fitting, key=lambda part: (abs(part - wanted), part))


def _parts(blocks: int, staleness: Any) -> int:
    if isinstance(staleness, int) and staleness > 0:
        return min(_MANY, -((1 - blocks) // staleness))
    return _MANY if blocks >= _MANY else 4


def _section(values: Any, name: str) -> Mapping[str, Any]:
    found = values.get(name) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _numbers(replicas: Any) -> list[Any]:
    return [*replicas.values()] if isinstance(replicas, Mapping) else [replicas]
