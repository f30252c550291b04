"""How long a process may give no answer, or hold the others up, before it counts as lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowdimfa.services.block.reports import Status

START_LIVENESS = 3.0
"""Until it has started, a process of a run may take this many times the liveness: it imports torch, loads data and
builds the model."""

LEAST_START_SECONDS = 60.0
"""A trainer may take this long to start however short the liveness, which is about a run under way."""


def longest_silence(liveness: float, started: bool) -> float:
    """Return the seconds after which a trainer that gives no answer is ended and replaced.

    Parameters
    ----------
    liveness
        The run's own setting.
    started
        Whether its run is under way.
    """
    return liveness if started else max(LEAST_START_SECONDS, START_LIVENESS * liveness)


def holds_up(statuses: Sequence[Status], liveness: float) -> int | None:
    """Return the number of the first worker that works on one thing for longer than the liveness; None if none does."""
    return next(
        (number for number, found in enumerate(statuses) if found.working and found.seconds > liveness), None
    )
