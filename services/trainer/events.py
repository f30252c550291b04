"""The events of a run: one JSON object each, in the run's log and for whoever watches."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lowdimfa.network import StepResult

Event = dict[str, Any]
Sink = Callable[[Event], None]


class EventLog:
    """Appends events to ``events.jsonl`` and hands them to a sink.

    Parameters
    ----------
    path
        Of the log; lines of an earlier part of a resumed run stay. One that a killed process left without its end is
        ended.
    sink
        Gets each event, already plain data.
    lost_at
        When the loss of the trainer was noticed that this one replaces, in Unix seconds: the first ``started`` event is
        then followed by a ``recovered`` event.
    """

    def __init__(self, path: Path, sink: Sink | None = None, lost_at: float | None = None) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._sink, self._lost_at = sink, lost_at
        if not _ends_in_whole_line(path):
            self._file.write("\n")

    def emit(self, event: str, **fields: Any) -> Event:
        """Record one event and return it."""
        entry = {"event": event, "time": time.time(), **fields}
        self._file.write(to_json(entry) + "\n")
        if self._sink is not None:
            self._sink(entry)
        if event == "started" and self._lost_at is not None:
            seconds = max(0.0, entry["time"] - self._lost_at)  # another machine's clock may have noted it
            self._lost_at = None
            step = fields["step"]
            self.emit("recovered", policy="restart", blocks=[], step=step, missed={}, seconds=seconds)
        return entry

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def events_in(log: Path, kinds: Collection[str] = (), start: int = 0) -> Iterator[Event]:
    """Yield the events of a log; a log that isn't there has none, and lines that are no events are passed over.

    Parameters
    ----------
    log
        The ``events.jsonl`` of a run.
    kinds
        Of the events wanted; all if empty.
    start
        Byte of a line's beginning before which nothing is read.
    """
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return
    marks = [f'"{kind}"'.encode() for kind in kinds]
    with file:
        file.seek(start)
        for line in file:
            if marks and not any(mark in line for mark in marks):
                continue  # parsing a long log takes seconds
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and (not kinds or event.get("event") in kinds):
                yield event


def _ends_in_whole_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def to_json(event: Event) -> str:
    """Return one line of valid JSON; numbers that aren't finite, which JSON doesn't have, become null."""
    return json.dumps({key: _finite(value) for key, value in event.items()}, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


class ProgressMeter:
    """Turns step results into ``progress`` events: means over the last steps, speed, time left.

    Parameters
    ----------
    emit
        Records an event.
    batch_size, steps_per_epoch, total_steps
        Of the run.
    every
        Steps between events.
    """

    def __init__(
        self,
        emit: Callable[..., Event],
        *,
        batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
        every: int,
    ) -> None:
        self._emit = emit
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._total = total_steps
        self._every = every
        self._recent: deque[StepResult] = deque(maxlen=every)
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)

    def begin(self, step: int) -> None:
        """Start measuring speed from a step boundary, such as after an evaluation."""
        self._marks.clear()
        self._marks.append((time.monotonic(), step))

    def take(self, results: Sequence[StepResult]) -> None:
        """Take in finished steps, in order."""
        for result in results:
            self._recent.append(result)
            done = result.step + 1
            if done % self._every == 0 or done == self._total:
                self._report(done)

    def _report(self, done: int) -> None:
        self._marks.append((time.monotonic(), done))
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        rate = (last - first) / (end - start) if end > start else 0.0
        counted = sum(result.counted for result in self._recent)
        self._emit(
            "progress",
            step=done,
            steps=self._total,
            epoch=(done - 1) // self._steps_per_epoch + 1,
            loss=sum(result.loss for result in self._recent) / len(self._recent),
            accuracy=sum(result.correct for result in self._recent) / counted if counted else None,
            samples=done * self._batch_size,
            samples_per_second=rate * self._batch_size,
            eta_seconds=(self._total - done) / rate if rate else None,
        )
