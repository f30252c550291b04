"""One round of a drill: a run under faults, watched, and judged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lowdimfa.errors import InputError, LowdimfaError, StoppedError
from lowdimfa.services.lab.drill.compare import Comparison, compare, must_be_equal
from lowdimfa.services.lab.drill.growth import Growth, growth
from lowdimfa.services.lab.drill.judge import Fate, Outage, happened_in, judge, outages
from lowdimfa.services.lab.drill.plan import Schedule
from lowdimfa.services.lab.drill.watch import ProcessWatch, files_left
from lowdimfa.services.monitoring.journal import Event, Journal, Sink
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.results import Result

Fit = Callable[[str, Callable[[Sink], DecoupledTrainer]], Result]
"""Runs the trainer that a function makes of whoever follows its events, under the name of a part of the drill."""

GONE_LIVENESS = 3.0
"""The processes of a run may take this many times the liveness to be gone after it."""


@dataclass(frozen=True)
class Round:
    """What a round came to.

    Attributes
    ----------
    number
        From 1.
    run_dir
        Of its run.
    fates
        Of its faults, by step.
    outages
        All of the run's.
    beyond
        Recoveries that no fault explains.
    comparison
        Of the result; None if there is none.
    failure
        Why the run failed, or nothing.
    processes
        Most of the run's at a time, as far as they are on this machine.
    unwatched
        Processes of the run that are not on this machine.
    growths
        Of the processes that lived through several recoveries.
    left
        What of the run was still there after it.
    seconds
        That the round took.
    """

    number: int
    run_dir: Path
    fates: list[Fate]
    outages: list[Outage]
    beyond: int
    comparison: Comparison | None
    failure: str
    processes: int
    unwatched: int
    growths: list[Growth]
    left: list[str]
    seconds: float

    @property
    def recoveries(self) -> int:
        """Recoveries, those that were begun anew because more was lost included."""
        return sum(outage.recoveries for outage in self.outages)

    @property
    def leaks(self) -> list[str]:
        """What was left behind, or grew."""
        return [
            *(f"left: {what}" for what in self.left),
            *(leak for entry in self.growths for leak in entry.leaks),
        ]

    @property
    def troubles(self) -> list[str]:
        """Why the round is not passed; nothing if it is."""
        found = [f"the run failed: {self.failure}"] if self.failure else []
        if self.comparison is not None and not self.comparison.holds:
            found.append(f"the result does not hold: {self.comparison.words}")
        lost = [f"{fate.kind} at step {fate.step}" for fate in self.fates if fate.verdict == "not recovered"]
        if lost and not self.failure:
            found.append(f"not noticed: {', '.join(lost)}")
        if not self.failure and all(fate.happened is None for fate in self.fates):
            found.append("none of its faults happened, so that nothing was drilled")
        return found + self.leaks


class TrainerKiller:
    """Kills the trainer's process, on this machine, when the run has come to a drawn step.

    Parameters
    ----------
    steps
        After which, ascending.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = list(steps)
        self._trainer: psutil.Process | None = None
        self.kills: list[float] = []

    def saw(self, event: Event) -> None:
        """Take in an event of the run, and kill if it is time."""
        if event["event"] == "started":
            try:
                self._trainer = psutil.Process(event["pids"]["trainer"])
            except psutil.NoSuchProcess:
                self._trainer = None
        due = event["event"] == "progress" and bool(self._steps) and event["step"] >= self._steps[0]
        if not due or self._trainer is None or not self._trainer.is_running():
            return
        del self._steps[0]
        self.kills.append(time.time())
        os.kill(self._trainer.pid, signal.SIGKILL)
        self._trainer = None


@dataclass(frozen=True)
class Terms:
    """What every round of a drill is run and judged by.

    Attributes
    ----------
    specification
        Without faults.
    make
        Makes a trainer.
    fit
        Runs a trainer.
    reference
        The undisturbed run.
    own_cluster
        Whether Ray is started for each run alone, so that nothing of it may be left.
    tolerance
        See `compare`.
    """

    specification: Specification
    make: Callable[[Specification, Path, Sink], DecoupledTrainer]
    fit: Fit
    reference: Result
    own_cluster: bool
    tolerance: float


def run_round(number: int, drill: Terms, schedule: Schedule, run_dir: Path) -> Round:
    """Run a round to its end, well or not.

    Parameters
    ----------
    number
        From 1.
    drill
        What all rounds have in common.
    schedule
        The faults.
    run_dir
        Directory of the run.

    Raises
    ------
    InputError
        What was given can't be used.
    StoppedError
        Somebody asked for an end.
    """
    began = time.time()
    killer = TrainerKiller(schedule.trainer_steps)
    with ProcessWatch(descendants=drill.own_cluster) as watch:
        result, failure = _fit(number, drill, schedule, run_dir, [watch.saw, killer.saw])
    liveness = drill.specification.run.liveness_seconds
    found = outages(Journal(run_dir).read("recovering", "recovered", "started"))
    happened = happened_in(run_dir, len(schedule.faults))
    fates, beyond = judge(schedule, happened, killer.kills, found, liveness)
    spans = [(outage.begin, outage.end if outage.end is not None else time.time()) for outage in found]
    growths = [grown for watched in watch.watched if (grown := growth(watched, spans)) is not None]
    equal = must_be_equal(drill.specification)
    return Round(
        number=number,
        run_dir=run_dir,
        fates=fates,
        outages=found,
        beyond=beyond,
        comparison=None if result is None else compare(drill.reference, result, equal, drill.tolerance),
        failure=failure,
        processes=watch.most_processes,
        unwatched=len(watch.elsewhere),
        growths=growths,
        left=watch.left(GONE_LIVENESS * liveness) + files_left(run_dir),
        seconds=time.time() - began,
    )


def _fit(
    number: int, drill: Terms, schedule: Schedule, run_dir: Path, watchers: Sequence[Sink]
) -> tuple[Result | None, str]:
    """Run under the faults of a round; return the result, or why there is none."""
    drilled = schedule.applied_to(drill.specification)

    def trainer(sink: Sink) -> DecoupledTrainer:
        def saw(event: Event) -> None:
            for take in (*watchers, sink):
                take(event)

        return drill.make(drilled, run_dir, saw)

    try:
        return drill.fit(f"round {number}", trainer), ""
    except (InputError, StoppedError):
        raise
    except LowdimfaError as error:
        return None, error.message
