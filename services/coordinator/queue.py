"""Which queued jobs start now, and what the others wait for."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from lowdimfa.services.coordinator.jobs import ACTIVE, Job, JobState
from lowdimfa.services.coordinator.runner import Capacity
from lowdimfa.services.coordinator.store import JobStore

AT_ONCE = 50
"""Jobs that are looked at in one round, beside those that were refused; the others are behind them."""


class StartOrder(NamedTuple):
    """Jobs to start, in order, and jobs that wait for a reason of their own."""

    starting: list[Job]
    waiting: list[tuple[Job, str]]


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
    cpus = min(capacity.cpus - sum(job.cpus for job in active), capacity.free_cpus)
    gpus = min(capacity.gpus - sum(job.gpus for job in active), capacity.free_gpus)
    order = StartOrder([], [])
    for job in store.queued(capacity.cpus, capacity.gpus, fitting=False, limit=AT_ONCE):
        order.waiting.append((job, _never(job, capacity)))
    again: list[Job] = []
    for job in store.queued(capacity.cpus, capacity.gpus, fitting=True, limit=AT_ONCE + len(refused)):
        if job.id in refused:
            again.append(job)
            continue
        if job.cpus > cpus or job.gpus > gpus:
            order.waiting.append((job, _not_yet(job, capacity, cpus, gpus)))
            break
        order.starting.append(job)
        cpus, gpus = cpus - job.cpus, gpus - job.gpus
    trying = any(job.id in refused and job.state is JobState.starting for job in active)
    for job in again:
        if job.id in resting:
            continue
        if job.cpus > cpus or job.gpus > gpus:
            order.waiting.append((job, _not_yet(job, capacity, cpus, gpus)))
        elif not trying:
            order.starting.append(job)
            cpus, gpus, trying = cpus - job.cpus, gpus - job.gpus, True
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
