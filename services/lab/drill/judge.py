"""What became of each fault of a round, read from the run's events and from what its blocks noted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowdimfa.services.block.faults import faults_dir
from lowdimfa.services.lab.drill.plan import HARMLESS, Kind, Schedule
from lowdimfa.services.monitoring.journal import Event

NOTICED_LIVENESS = 3.0
"""A loss has to be noticed within this many times the liveness: a later recovery is that of something else."""

Verdict = Literal["recovered", "harmless", "not reached", "not recovered"]


@dataclass(frozen=True)
class Outage:
    """A time without training: from the first notice of a loss until training goes on.

    Attributes
    ----------
    begin, end
        In Unix seconds; no end if the run ended in it.
    recoveries
        That it took: more than one if more was lost meanwhile.
    reason
        Of the first.
    """

    begin: float
    end: float | None
    recoveries: int
    reason: str

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it never ended."""
        return None if self.end is None else self.end - self.begin


def outages(events: Iterable[Event]) -> list[Outage]:
    """Return the outages of a run."""
    found: list[Outage] = []
    open_since: Event | None = None
    recoveries = 0
    for event in events:
        match event["event"]:
            case "recovering":
                open_since = open_since or event
                recoveries += 1
            case "recovered" | "started" if open_since is not None:
                found.append(Outage(open_since["time"], event["time"], recoveries, open_since["reason"]))
                open_since, recoveries = None, 0
    if open_since is not None:
        found.append(Outage(open_since["time"], None, recoveries, open_since["reason"]))
    return found


@dataclass(frozen=True)
class Fate:
    """What became of one fault.

    Attributes
    ----------
    kind, block, step
        The fault; no block if it hit the trainer.
    happened
        When, in Unix seconds, or None if it didn't: its step was jumped over, or the run ended before.
    noticed_seconds
        From then until its loss was noticed, where it cost a recovery.
    outage_seconds
        From then until training went on.
    verdict
        In a word.
    """

    kind: Kind
    block: int | None
    step: int
    happened: float | None
    noticed_seconds: float | None
    outage_seconds: float | None
    verdict: Verdict


def judge(
    schedule: Schedule,
    happened: Mapping[int, float],
    kills: Sequence[float],
    found: Sequence[Outage],
    liveness: float,
) -> tuple[list[Fate], int]:
    """Match the faults of a round with its outages.

    Parameters
    ----------
    schedule
        The round's faults.
    happened
        When each of the blocks' faults happened, by its index; those that didn't are missing.
    kills
        When the trainer was killed, as often as it was.
    found
        The run's outages.
    liveness
        The run's, in seconds.

    Returns
    -------
    list of Fate
        By step.
    int
        Recoveries that no fault explains.
    """
    faults = _timed(schedule, happened, kills)
    times = sorted(time for *_, time in faults if time is not None)
    explained: set[Outage] = set()
    fates: dict[int, Fate] = {}
    # Those that cost a recovery choose first: what is left to choose from was caused by something else.
    order = sorted(
        range(len(faults)), key=lambda index: (faults[index][0] in HARMLESS, faults[index][3] or 0.0)
    )
    for index in order:
        kind, block, step, time = faults[index]
        if time is None:
            fates[index] = Fate(kind, block, step, None, None, None, "not reached")
            continue
        harmless = kind in HARMLESS
        following = min((other for other in times if other > time), default=float("inf"))
        outage = next(
            (
                outage
                for outage in found
                if (outage.end is None or outage.end > time)
                and outage.begin <= time + NOTICED_LIVENESS * liveness
                and not (harmless and (outage in explained or not time <= outage.begin <= following))
            ),
            None,
        )
        if outage is not None:
            explained.add(outage)
        fates[index] = _fate(kind, block, step, time, outage)
    beyond = sum(outage.recoveries for outage in found if outage not in explained)
    return sorted(fates.values(), key=lambda fate: fate.step), beyond


def _timed(
    schedule: Schedule, happened: Mapping[int, float], kills: Sequence[float]
) -> list[tuple[Kind, int | None, int, float | None]]:
    """Return kind, block and step of each fault, and when it happened."""
    return [
        *(
            (fault.kind, fault.block, fault.step, happened.get(index))
            for index, fault in enumerate(schedule.faults)
        ),
        *(
            ("trainer", None, step, kills[index] if index < len(kills) else None)
            for index, step in enumerate(schedule.trainer_steps)
        ),
    ]


def _fate(kind: Kind, block: int | None, step: int, time: float, outage: Outage | None) -> Fate:
    if outage is None:
        verdict: Verdict = "harmless" if kind in HARMLESS else "not recovered"
        return Fate(kind, block, step, time, None, None, verdict)
    noticed = max(0.0, outage.begin - time)  # another machine's clock may have noted the fault
    verdict = "not recovered" if outage.end is None else "recovered"
    return Fate(kind, block, step, time, noticed, outage.seconds, verdict)


def happened_in(run_dir: Path, faults: int) -> dict[int, float]:
    """Return when each fault of a run happened, by its index, as its blocks noted it before it did."""
    times: dict[int, float] = {}
    for index in range(faults):
        try:
            note: Any = json.loads((faults_dir(run_dir) / f"{index}.json").read_text("utf-8"))
            times[index] = float(note["time"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):  # killed while it was written
            times[index] = (faults_dir(run_dir) / f"{index}.json").stat().st_mtime
    return times
