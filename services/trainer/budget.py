"""How many recoveries a run may have, and how long to wait before each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.spec import Specification

TRAINER_LOST = "the trainer's process was lost"
"""The reason of a recovery that replaces the trainer itself."""

FIRST_PAUSE = 0.1
"""Seconds before the second recovery within the window; each further one doubles them. The first needs no pause."""

PAUSE_LIVENESS = 1 / 8
"""The longest pause, as a part of the liveness: a pause must not look like a lost process."""


class RecoveryBudget:
    """Counts recoveries within a window of time, so that a run that can't go on comes to an end.

    Parameters
    ----------
    max_recoveries
        Recoveries within the window that are granted.
    window_seconds
        Seconds after which a recovery no longer counts.
    longest_pause
        Seconds that no pause exceeds.
    clock
        Returns seconds; `time.time` where ``spent`` was written down by another process.
    spent
        When there were recoveries before, by ``clock``.
    """

    def __init__(
        self,
        max_recoveries: int,
        window_seconds: float,
        longest_pause: float,
        clock: Callable[[], float] = time.monotonic,
        spent: Iterable[float] = (),
    ) -> None:
        self._most, self._window, self._longest = max_recoveries, window_seconds, longest_pause
        self._clock = clock
        self._spent = sorted(spent)
        self._total = len(self._spent)

    @classmethod
    def of(
        cls,
        specification: Specification,
        clock: Callable[[], float] = time.monotonic,
        spent: Iterable[float] = (),
    ) -> RecoveryBudget:
        """Return the budget that a specification sets."""
        run = specification.run
        pause = PAUSE_LIVENESS * run.liveness_seconds
        return cls(run.max_recoveries, run.recovery_window_seconds, pause, clock, spent)

    @property
    def total(self) -> int:
        """Recoveries so far, those out of the window included: the ``recovery`` of a ``recovering`` event."""
        return self._total

    def spend(self) -> float | None:
        """Count one recovery that begins now.

        Returns
        -------
        float or None
            Seconds to wait before it: none for the first within the window, then twice as many from time to time,
            drawn at random between half and all of them, so that many jobs that lost the same machine don't return
            in step. None if the window already has all recoveries that are granted; nothing is counted then.
        """
        now = self._clock()
        self._spent = [moment for moment in self._spent if now - moment < self._window]
        before = len(self._spent)
        if before >= self._most:
            return None
        self._spent.append(now)
        self._total += 1
        if not before:
            return 0.0
        # The exponent is bounded, because a float's is.
        pause = min(self._longest, FIRST_PAUSE * 2.0 ** min(before - 1, 60))
        return pause * random.uniform(0.5, 1.0)

    def used_up(self, loss: str) -> str:
        """Say for people why the loss that found no recovery left ends the run.

        Parameters
        ----------
        loss
            What was lost, such as ``block 1 lost its process``.
        """
        return (
            f"{loss}; that makes {self._most + 1:,} losses within {self._window:g} s, more than run.max_recoveries "
            f"({self._most:,}) allows"
        )


def recoveries_in(journal: Journal) -> list[float]:
    """Return when the recoveries in a run's journal began, in Unix seconds, since a person last resumed the run.

    Whoever replaces a trainer counts by the journal, because the trainer that counted last is gone. A run that ended and
    then started without a recovery between was resumed by a person, who begins with a full budget.
    """
    moments: list[float] = []
    ended = False
    for event in journal.read("failed", "finished", "recovering", "started"):
        match event["event"]:
            case "recovering":
                moments.append(float(event["time"]))
                ended = False
            case "started":
                moments = [] if ended else moments
                ended = False
            case _:
                ended = True
    return moments
