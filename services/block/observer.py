"""What a block does right now, did, and waited for: for its metrics, its timeline, and whoever asks why it hangs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lowdimfa.network import StepResult
from lowdimfa.services.block.reports import Status
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.monitoring.timeline import TimelineWriter
from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.tickets import Ticket

REMEMBERED = 50
"""Pieces of work that are remembered, for the last words of a block."""


@dataclass(frozen=True)
class Activity:
    """What a block is doing.

    Attributes
    ----------
    kind
        ``read``, ``forward``, ``update``, ``step``, ``send``, ``publish``, ``wait`` or ``rest``.
    subject
        The micro-batch, or what is waited for.
    since
        Seconds by a clock that nobody sets.
    """

    kind: str
    subject: str
    since: float

    @property
    def seconds(self) -> float:
        """For how long."""
        return time.monotonic() - self.since

    def __str__(self) -> str:
        words = {"wait": "waiting for the", "rest": "at rest,"}.get(self.kind, f"in {self.kind} of")
        return f"{words} {self.subject} for {self.seconds:.1f} s"


@dataclass
class Observer:
    """Notes of the compute thread; any thread may read `activity`.

    Parameters
    ----------
    metrics
        For Prometheus.
    timeline
        For the report, or None.
    on_step
        Called after every step, for what is counted elsewhere.

    Attributes
    ----------
    activity
        What the block does now.
    applied_steps
        Optimiser steps of the run that it has applied.
    finished
        In the head, the results of steps that nobody has asked for yet.
    recent
        The last pieces of work: kind, micro-batch, Unix seconds of begin and end, cause of a wait.
    """

    metrics: BlockMetrics
    timeline: TimelineWriter | None
    on_step: Callable[[], None]
    activity: Activity = field(default_factory=lambda: Activity("rest", "not started", time.monotonic()))
    applied_steps: int = 0
    finished: deque[StepResult] = field(default_factory=deque)
    recent: deque[tuple[str, Ticket, float, float, str]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED)
    )
    _forwarded: dict[int, dict[int, int]] = field(default_factory=dict)

    def status(self, broadcast: TrafficCount) -> Status:
        """Return what a block says when asked, with its traffic."""
        activity = self.activity
        working = activity.kind not in ("wait", "rest")
        return Status(self.applied_steps, str(activity), activity.seconds, working, broadcast)

    def begin(self, kind: str, subject: str) -> None:
        """Note what is being done from now on."""
        self.activity = Activity(kind, subject, time.monotonic())

    def rest(self, step: int) -> None:
        """Note that the block is at a step boundary and has nothing to do."""
        self.applied_steps = step
        self.metrics.stepped(step)
        self.in_flight(0)
        self.begin("rest", f"before step {step}")
        if self.timeline is not None:
            self.timeline.flush()

    def forwarded(self, ticket: Ticket, samples: int) -> None:
        """Note the size of a micro-batch."""
        self._forwarded.setdefault(ticket.step, {})[ticket.microbatch] = samples

    def working(self, kind: str) -> float:
        """Count time as spent on a kind of work until `did`, and return the Unix seconds of now."""
        self.metrics.working(kind)
        return time.time()

    def waiting(self, cause: str) -> float:
        """Count time as waiting for something until `waited`, and return the Unix seconds of now."""
        self.metrics.waiting(cause)
        return time.time()

    def idle(self) -> None:
        """Count time as neither, should an error have ended a wait or work."""
        self.metrics.idle()

    def did(self, kind: str, ticket: Ticket, began: float) -> None:
        """Note a finished piece of work."""
        self.metrics.idle()
        ended = max(began, time.time())  # the clock may be set back
        if kind == "step":
            self.applied_steps = ticket.step + 1
            self.metrics.stepped(self.applied_steps)
            self.metrics.samples(sum(self._forwarded.pop(ticket.step, {}).values()))
            self.on_step()
        self._span(kind, ticket, began, ended)

    def waited(self, step: int, cause: str, began: float) -> None:
        """Note the end of a wait."""
        self.metrics.idle()
        self._span("wait", Ticket(step, 0), began, max(began, time.time()), cause)

    def in_flight(self, microbatches: int) -> None:
        """Note how many micro-batches await their error."""
        self.metrics.inflight(microbatches)

    def staleness(self, steps: int) -> None:
        """Note how far a forward ran ahead of the updates."""
        self.metrics.staleness(steps)

    def trained(self, result: StepResult) -> None:
        """Note the result of a step."""
        self.finished.append(result)
        self.metrics.trained(result.loss, result.accuracy)

    def _span(self, kind: str, ticket: Ticket, began: float, ended: float, cause: str = "") -> None:
        self.recent.append((kind, ticket, began, ended, cause))
        if self.timeline is not None:
            self.timeline.record(kind, ticket.step, ticket.microbatch, began, ended, cause)
