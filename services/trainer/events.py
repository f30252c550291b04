"""The events of a run: one JSON object each, in the run's log and for whoever watches."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdimfa.services.monitoring.line_file import WAITING_BYTES, LineFile
from lowdimfa.services.run.disk import refusal

if TYPE_CHECKING:
    from lowdimfa.network import StepResult

Event = dict[str, Any]
Sink = Callable[[Event], None]

_log = logging.getLogger(__name__)


class EventLog:
    """Appends events to ``events.jsonl`` and hands them to a sink.

    A full disk ends no run: the sink gets a ``warning``, and the events wait for room. If more than ``limit`` bytes wait,
    the oldest are given up, and another ``warning`` stands in their place in the log.

    Parameters
    ----------
    path
        Of the log; lines of an earlier part of a resumed run stay. One that a killed process left without its end is
        ended.
    sink
        Gets each event, already plain data, whether or not the log has room for it.
    lost_at
        When the loss of the trainer was noticed that this one replaces, in Unix seconds: the first ``started`` event is
        then followed by a ``recovered`` event.
    limit
        Bytes that may wait for room on the disk.

    Raises
    ------
    ResourceError
        The log can't be opened.
    """

    def __init__(
        self,
        path: Path,
        sink: Sink | None = None,
        lost_at: float | None = None,
        *,
        limit: int = WAITING_BYTES,
    ) -> None:
        self._sink, self._lost_at = sink, lost_at
        self._file = LineFile(path, limit, on_trouble=self._note_trouble, gap=_note_gap)
        try:
            self._file.open()
        except OSError as error:
            raise refusal("the log of events can't be opened", path, error) from error

    @property
    def trouble(self) -> str | None:
        """Why events are waiting to be written, or None."""
        return self._file.trouble

    def emit(self, event: str, **fields: Any) -> Event:
        """Record one event and return it."""
        entry = _entry(event, **fields)
        self._file.write(_line(entry))
        self._hand_on(entry)
        if event == "started" and self._lost_at is not None:
            seconds = max(0.0, entry["time"] - self._lost_at)  # another machine's clock may have noted it
            self._lost_at = None
            step = fields["step"]
            self.emit("recovered", policy="restart", blocks=[], step=step, missed={}, seconds=seconds)
        return entry

    def close(self) -> None:
        """Close the log, after a last try to write what waits."""
        self._file.close()
        if self._file.missing:
            _log.warning("%d events are missing in %s", self._file.missing, self._file.path)

    def _note_trouble(self, reason: str) -> str:
        entry = _entry("warning", message=f"{reason}; events wait in memory until that is possible again")
        self._hand_on(entry)
        return _line(entry)

    def _hand_on(self, entry: Event) -> None:
        if self._sink is not None:
            self._sink(entry)


def _note_gap(events: int) -> str:
    return _line(_entry("warning", message=f"{events} events are missing here: the log could not be written"))


def _entry(event: str, **fields: Any) -> Event:
    return {"event": event, "time": time.time(), **fields}


def _line(entry: Event) -> str:
    return to_json(entry) + "\n"


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
        self.last_step = 0

    def begin(self, step: int) -> None:
        """Start measuring speed from a step boundary, such as after an evaluation."""
        self.last_step = step
        while self._recent and self._recent[-1].step >= step:
            self._recent.pop()  # of a course of the run that was given up
        self._marks.clear()
        self._marks.append((time.monotonic(), step))

    def take(self, results: Sequence[StepResult]) -> None:
        """Take in finished steps, in order."""
        for result in results:
            self._recent.append(result)
            done = self.last_step = result.step + 1
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
