"""Which queued jobs start now, and what the others wait for."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from lowdimfa.services.coordinator.jobs import ACTIVE, Job, JobState
from lowdimfa.services.coordinator.runner import Capacity
from lowdimfa.services.coordinator.store import JobStore

AT_ONCE = 50
"""Jobs that are looked at in one round, beside those that were refused; the others are behind them."""

AWAY = "the cluster can't be reached"
"""Begins what the first job in the queue says while that is so."""

LONGEST_REST = 10.0
"""Times the liveness that a job for which there was no room may rest before it tries again."""

DIGITS = 4
"""Of amounts behind the point, as Ray counts them: 1 less 4 times 0.2 has room for 0.2."""

REFUSED = "there was no room for its blocks on any nodes; it tries again with what others leave"


class StartOrder(NamedTuple):
    """Jobs to start, in order, and jobs with what they wait for; empty for those that have no reason of their own."""

    starting: list[Job]
    waiting: list[tuple[Job, str]]

    def outdated(self, job: Job, reason: str) -> None:
        """Give a job another reason if it has one of this queue: from when it was its turn, or it was too large."""
        if job.detail.startswith(("waits for ", AWAY)):
            self.waiting.append((job, reason))


class Rests:
    """Which jobs found no room twice: each waits before its next try, each time longer, and others go before it.

    Once somebody may have been quicker; but what fits a cluster in sum may fit none of its nodes.

    Parameters
    ----------
    liveness
        In seconds; the pauses derive from it.
    """

    def __init__(self, liveness: float) -> None:
        self._liveness = liveness
        self._pauses: dict[str, tuple[float, float]] = {}

    def over(self, job: Job, no_room: bool) -> None:
        """Note that an attempt is over; when it ended otherwise than without room, all that rest may try again."""
        _, last = self._pauses.pop(job.id, (0.0, None))
        if no_room:
            longer = 0.0 if last is None else max(2 * last, self._liveness / 12)
            pause = min(longer, LONGEST_REST * self._liveness)
            self._pauses[job.id] = time.monotonic() + pause, pause
        else:
            self._pauses = {name: (0.0, pause) for name, (_, pause) in self._pauses.items()}

    @property
    def resting(self) -> set[str]:
        """Jobs whose pause isn't over yet."""
        return {name for name, (until, _) in self._pauses.items() if until > time.monotonic()}

    @property
    def refused(self) -> set[str]:
        """Jobs that found no room twice."""
        return {name for name, (_, pause) in self._pauses.items() if pause}


def start_order(
    store: JobStore, capacity: Capacity, resting: Collection[str] = (), refused: Collection[str] = ()
) -> StartOrder:
    """Apply the rule of the queue: first come, first served.

    What doesn't fit now holds back all that came after it, so that a large job is not overtaken for ever by small
    ones; but what the whole cluster could not hold holds back nobody, and neither does what was ``refused``: for which
    there was no room on any nodes though there was in sum. These get what the others leave, one at a time, since one
    that tries has its room until it is refused again. Those of them that are ``resting`` don't try.
    """
    active = store.in_states(ACTIVE)
    # Ray's figure knows of other users; ours of jobs that have not taken their places yet.
    cpus = round(min(capacity.cpus - sum(job.cpus for job in active), capacity.free_cpus), DIGITS)
    gpus = round(min(capacity.gpus - sum(job.gpus for job in active), capacity.free_gpus), DIGITS)
    order = StartOrder([], [])
    for job in store.queued(capacity.cpus, capacity.gpus, fitting=False, limit=AT_ONCE):
        order.waiting.append((job, _never(job, capacity)))
    again: list[Job] = []
    held = False
    for job in store.queued(capacity.cpus, capacity.gpus, fitting=True, limit=AT_ONCE + len(refused)):
        if held:
            order.outdated(job, "")
        elif job.id in refused:
            again.append(job)
        elif job.cpus > cpus or job.gpus > gpus:
            order.waiting.append((job, _not_yet(job, capacity, cpus, gpus)))
            held = True
        else:
            order.starting.append(job)
            cpus, gpus = round(cpus - job.cpus, DIGITS), round(gpus - job.gpus, DIGITS)
    trying = any(job.id in refused and job.state is JobState.starting for job in active)
    for job in again:
        fits = job.cpus <= cpus and job.gpus <= gpus
        if job.id in resting or (fits and trying):
            order.outdated(job, REFUSED)
        elif fits:
            order.starting.append(job)
            cpus, gpus, trying = round(cpus - job.cpus, DIGITS), round(gpus - job.gpus, DIGITS), True
        else:
            order.waiting.append((job, _not_yet(job, capacity, cpus, gpus)))
    return order


def _never(job: Job, capacity: Capacity) -> str:
    if not capacity.cpus:
        return f"waits for {_amount(job.cpus, job.gpus)}; the cluster has no worker node yet"
    has = _amount(capacity.cpus, capacity.gpus if job.gpus else 0)
    return f"waits for {_amount(job.cpus, job.gpus)}; the whole cluster has {has}: add nodes, or use fewer blocks"


def _not_yet(job: Job, capacity: Capacity, cpus: float, gpus: float) -> str:
    if job.cpus > cpus:
        return f"waits for {_amount(job.cpus, 0)}: {max(cpus, 0):g} of {capacity.cpus:g} are free"
    return f"waits for {_amount(0, job.gpus)}: {max(gpus, 0):g} of {capacity.gpus:g} are free"


def _amount(cpus: float, gpus: float) -> str:
    parts = [
        f"{amount:g} {name}{'s' if amount != 1 else ''}"
        for amount, name in ((cpus, "CPU"), (gpus, "GPU"))
        if amount
    ]
    return " and ".join(parts) or "no CPU"
