"""Where each worker's state comes from when blocks were lost, and the step from which the run goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from lowdimfa.services.block.building import Checkpointed, Own, Source
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.recovery.policy import RecoveryPolicy


class WayBack(NamedTuple):
    """What brings all workers to one step.

    Attributes
    ----------
    step
        The run goes on from here.
    sources
        Of the workers' states, by number.
    missed
        By the numbers of workers that lack some, how many of the optimiser steps before ``step``.
    """

    step: int
    sources: list[Source]
    missed: dict[int, int]


def way_back(
    policy: RecoveryPolicy,
    applied: Mapping[int, int],
    lost: Collection[int],
    workers: int,
    checkpoint: int | None,
    snapshots: Mapping[int, Snapshot],
    learning: Collection[int] | None = None,
) -> WayBack:
    """Say where each worker's state comes from.

    Parameters
    ----------
    policy
        Which of them go back.
    applied
        Optimiser steps that workers which are left have applied, by number.
    lost
        Numbers of those whose state is lost or doubtful.
    workers
        How many there are.
    checkpoint
        Step of the newest good checkpoint, or None if there is none.
    snapshots
        The newest ones, by the workers' numbers.
    learning
        Numbers of the workers that learn, all by default: the others lack no step, and may be steps ahead.
    """
    if policy == "restart":
        return WayBack(checkpoint or 0, [Checkpointed(checkpoint)] * workers, {})
    sources = [
        _newest(snapshots.get(number), checkpoint) if number in lost else Own() for number in range(workers)
    ]
    has = {
        number: _step_of(source, applied.get(number, 0))
        for number, source in enumerate(sources)
        if learning is None or number in learning
    }
    # The others may be behind a lost head's snapshot: errors that it broadcast are lost with it.
    step = max(has.values())
    return WayBack(step, sources, {number: step - steps for number, steps in has.items() if steps != step})


def _newest(snapshot: Snapshot | None, checkpoint: int | None) -> Source:
    if snapshot is None or snapshot.step < (checkpoint or 0):
        return Checkpointed(checkpoint)
    return snapshot


def _step_of(source: Source, applied: int) -> int:
    """Return the step of a state; ``applied`` is that of the worker's own."""
    match source:
        case Own():
            return applied
        case Checkpointed(step):
            return step or 0
    return source.step
