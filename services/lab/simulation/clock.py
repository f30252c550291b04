"""Simulated time: what happens when, and what computations take that share processor cores."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

_DIGITS = 9


class Clock:
    """Calls functions in the order of their simulated times; at the same time, in the order in which they were planned.

    Times are rounded to nanoseconds: so what takes equally long ends together, whatever the order of its additions.

    Attributes
    ----------
    now
        Simulated seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Plan a call for a time that is not over."""
        heapq.heappush(self._planned, (round(time, _DIGITS), next(self._order), call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Plan a call in so many seconds."""
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until a condition holds, or nothing is planned any more."""
        planned = self._planned
        while planned and not until():
            self.now, _, call, arguments = heapq.heappop(planned)
            call(*arguments)


class Cores:
    """Processor cores that computations share fairly, as those of one machine under an operating system.

    A computation uses one core. Of ``n`` on ``c`` cores each advances ``min(1, c / n)`` as fast as on a core of its
    own, and slower by the contention for memory and shared caches: by a factor ``1 + contention`` when all cores are
    busy, by less in proportion when fewer are.

    Parameters
    ----------
    clock
        Of the simulation.
    number
        Cores, or None where every computation has a core of its own.
    contention
        What computing on all cores at once costs each of them, as a share of its time alone.
    """

    def __init__(self, clock: Clock, number: int | None, contention: float = 0.0) -> None:
        self._clock = clock
        self._number = number
        self._contention = contention
        self._work_done = 0.0  # that a computation would have done which had been here from the start
        self._seen = 0.0
        self._running: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._plan = 0  # counts plans; what belongs to an earlier one is void

    def run(self, seconds: float, then: Callable[..., None], *arguments: Any) -> None:
        """Compute something that takes so many seconds on a core of its own, then call a function."""
        if self._number is None:
            self._clock.after(seconds, then, *arguments)
            return
        self._advance()
        heapq.heappush(self._running, (self._work_done + seconds, next(self._order), then, arguments))
        self._plan_next()

    def _speed(self) -> float:
        number, running = self._number or 1, len(self._running)
        busy = min(running, number)
        slowdown = 1 + self._contention * (busy - 1) / max(number - 1, 1)
        return min(1.0, number / running) / slowdown

    def _advance(self) -> None:
        if self._running:
            self._work_done += (self._clock.now - self._seen) * self._speed()
        self._seen = self._clock.now

    def _plan_next(self) -> None:
        self._plan += 1
        if self._running:
            left = max(0.0, self._running[0][0] - self._work_done)
            self._clock.after(left / self._speed(), self._end, self._plan)

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        self._work_done, _, then, arguments = heapq.heappop(self._running)
        self._plan_next()
        then(*arguments)
