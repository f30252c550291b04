"""Which faults a round of a drill has: drawn from a seed, within what a run is made to survive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from lowdimfa.errors import InputError
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.spec.faults import TIMED_KINDS, WIRE_KINDS, Fault, FaultKind

Kind = FaultKind | Literal["trainer"]
"""A fault that a block brings upon itself, or the end of the trainer's process, which the drill sees to."""

KINDS: tuple[Kind, ...] = (*get_args(FaultKind), "trainer")
HARMLESS: frozenset[Kind] = WIRE_KINDS | {"slow", "disk_full"}
"""Kinds that a run gets over without a recovery, whatever ``run.on_failure`` is."""

MOST_NAN = 1
"""The second number that isn't finite ends a run: training that diverges comes to it again."""

MOST_TRAINER = 2
"""Each costs a start of all processes, and the steps since the last checkpoint."""

LIVENESS: dict[Kind, float] = {"hang": 1.5, "slow": 0.3}
"""How long what lasts does, in liveness: clearly longer, or clearly shorter, than what counts as lost."""

MARGIN = 0.05
"""Part of the run at its beginning, and at its end, that stays without faults."""


@dataclass(frozen=True)
class Schedule:
    """The faults of one round, by step.

    Attributes
    ----------
    faults
        Those of the blocks, for the specification.
    trainer_steps
        Steps after which the trainer's process is killed.
    """

    faults: tuple[Fault, ...]
    trainer_steps: tuple[int, ...]

    def applied_to(self, specification: Specification) -> Specification:
        """Return the specification with these faults in place of its own, and enough recoveries for them."""
        recoveries = 2 * (len(self.faults) + len(self.trainer_steps)) + 2
        plain = specification.model_dump()
        plain["drill"]["faults"] = [fault.model_dump() for fault in self.faults]
        plain["run"]["max_recoveries"] = max(specification.run.max_recoveries, recoveries)
        return parse_specification(plain, "the specification of the drill")


def draw(
    seed: str,
    specification: Specification,
    steps: int,
    kinds: Collection[Kind],
    count: int,
    learns: bool = True,
) -> Schedule:
    """Draw the faults of a round: distinct steps over the middle of the run, the kinds as evenly as can be.

    Parameters
    ----------
    seed
        The same gives the same.
    specification
        Of the run; its own faults don't count.
    steps
        Optimiser steps of the run.
    kinds
        What may be drawn.
    count
        How many.
    learns
        Whether the first block does. One that doesn't gets no messages, of which one could be lost.

    Raises
    ------
    InputError
        So many of these kinds can't happen in this run.
    """
    random = Random(seed)
    blocks, liveness = specification.model.block_count, specification.run.liveness_seconds
    middle = range(math.ceil(MARGIN * steps), math.floor((1 - MARGIN) * steps))
    if count > len(middle):
        found = f"{count:,} in a run of {steps:,} steps"
        raise InputError("--faults", found, f"at most {len(middle):,}, or a longer run")
    if blocks == 1 and (wire := sorted(set(kinds) & WIRE_KINDS)):
        raise InputError(
            "--kinds", ", ".join(wire), "model.blocks of at least 2, as a block alone receives nothing"
        )
    checkpoints = _checkpoints(specification.run.checkpoint_every, steps, middle)
    dealt = _deal(
        random, kinds, count, {"nan": MOST_NAN, "trainer": MOST_TRAINER, "disk_full": len(checkpoints)}
    )
    full = [random.choice(span) for span in random.sample(checkpoints, dealt["disk_full"])]
    others = [kind for kind in dealt.elements() if kind != "disk_full"]
    free = random.sample(sorted(set(middle) - set(full)), len(others))
    drawn: list[tuple[int, Kind]] = [*zip(free, others, strict=True), *((step, "disk_full") for step in full)]
    faults = [
        Fault(
            kind=kind,
            block=random.choice(range(int(kind in WIRE_KINDS and not learns), blocks)),
            step=step,
            seconds=round(LIVENESS[kind] * liveness, 3) if kind in TIMED_KINDS else 0.0,
        )
        for step, kind in sorted(drawn)
        if kind != "trainer"
    ]
    return Schedule(tuple(faults), tuple(sorted(step for step, kind in drawn if kind == "trainer")))


def _checkpoints(every: int, steps: int, middle: range) -> list[range]:
    """Return, for each checkpoint on the way, the steps from which on a full disk makes that one fail."""
    if not every:
        return []
    spans = (
        range(max(end - every + 1, middle.start), min(end + 1, middle.stop))
        for end in range(every, steps, every)
    )
    return [span for span in spans if span]


def _deal(random: Random, kinds: Collection[Kind], count: int, most: dict[Kind, int]) -> Counter[Kind]:
    """Return how many faults there are of each kind: as even as their bounds allow, chance decides the rest."""
    bounds = {kind: min(most.get(kind, count), count) for kind in KINDS if kind in kinds}
    if sum(bounds.values()) < count:
        raise InputError("--faults", f"{count} of the kinds {_listed(kinds)}", _bounded(bounds))
    dealt: Counter[Kind] = Counter()
    for _ in range(count):
        left = [kind for kind, bound in bounds.items() if dealt[kind] < bound]
        fewest = min(dealt[kind] for kind in left)
        dealt[random.choice([kind for kind in left if dealt[kind] == fewest])] += 1
    return dealt


def _bounded(bounds: dict[Kind, int]) -> str:
    each = " and ".join(f"{bound} of kind {kind}" for kind, bound in bounds.items())
    way = "; run.checkpoint_every makes room for disk_full" if not bounds.get("disk_full", 1) else ""
    return f"at most {each}{way}, or further --kinds"


def _listed(kinds: Collection[Kind]) -> str:
    return ", ".join(kind for kind in KINDS if kind in kinds)


def parse_kinds(text: str | None, *, trainer: bool) -> tuple[Kind, ...]:
    """Return the kinds that an option names, separated by commas; without it all that are possible.

    Parameters
    ----------
    text
        The option's value, or None.
    trainer
        Whether the trainer's process can be reached.

    Raises
    ------
    InputError
        One of them isn't a kind, or isn't possible.
    """
    possible = KINDS if trainer else KINDS[:-1]
    if text is None:
        return possible
    named: Sequence[str] = [name.strip() for name in text.split(",")]
    for name in named:
        if name == "trainer" and not trainer:
            raise InputError(
                "--kinds", "'trainer' with --address", "a drill on this machine, where its process is"
            )
        if name not in KINDS:
            raise InputError("--kinds", repr(name), f"some of {', '.join(KINDS)}")
    return tuple(kind for kind in possible if kind in named)
