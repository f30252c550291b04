"""What trackers have in common: a run of theirs that a resumed run goes on in, numbers by step, files at the end."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lowdimfa.callback import Callback, Event, Run
from lowdimfa.data.extra import package
from lowdimfa.services.callbacks.numbers import scalars

LOG_SECONDS = 2.0
"""Least between two messages to a tracker while a run goes on."""

Ending = Literal["finished", "stopped", "failed"]


class Numbers(NamedTuple):
    """Numbers by name, and the step and the time, in Unix seconds, that they are of."""

    step: int
    time: float
    values: dict[str, float]


class Tracker(Callback):
    """Keeps a run's course with a tracker. Its identifier there is kept in the run's directory.

    Parameters
    ----------
    run_name
        What the run is called there; None takes the name of its directory.

    Attributes
    ----------
    name
        Of the package and of the extra of this project that brings it.

    Raises
    ------
    InputError
        The package isn't installed.
    """

    background = True
    name: ClassVar[str]

    def __init__(self, run_name: str | None = None) -> None:
        package(self.name, "run.callbacks", self.name)
        self._run_name = run_name
        self._known: str | None = None
        self._waiting: list[Numbers] = []
        self._sent = 0.0
        self._first_step = 0

    @property
    def _package(self) -> Any:
        return package(self.name)

    def _called(self, run: Run) -> str:
        return self._run_name or run.path.name

    @abstractmethod
    def begin(self, known: str | None, run: Run) -> str:
        """Begin a run of the tracker's, or go on in the one that is known; return its identifier."""

    @abstractmethod
    def log(self, numbers: list[Numbers]) -> None:
        """Add numbers to the run."""

    @abstractmethod
    def end(self, ending: Ending, files: list[Path], run: Run) -> None:
        """Add files, and end the run."""

    def started(self, event: Event, run: Run) -> None:
        """Begin, or go on in the run of an earlier part."""
        kept = run.path / f"{self.name}.json"
        known = json.loads(kept.read_text(encoding="utf-8"))["id"] if kept.is_file() else None
        self._first_step = event["step"] + 1 if event["step"] else 0
        self._known = self.begin(known, run)
        kept.write_text(json.dumps({"id": self._known}) + "\n", encoding="utf-8")

    def progress(self, event: Event, run: Run) -> None:
        """Note the numbers of an event; those that a resumed run repeats leave no trace."""
        if event["step"] < self._first_step:
            return
        self._waiting.append(Numbers(event["step"], event["time"], dict(scalars(event))))
        if event["event"] != "progress" or time.monotonic() - self._sent >= LOG_SECONDS:
            self._send()

    evaluated = alignment = progress

    def recovered(self, event: Event, run: Run) -> None:
        """Keep again what comes before the step that the run was resumed from, where it goes back beyond that."""
        self._first_step = min(self._first_step, event["step"] + 1)

    def finished(self, event: Event, run: Run) -> None:
        """Send what is left, and the files."""
        self._end("finished", event, run)

    def failed(self, event: Event, run: Run) -> None:
        """Send what is left, and the files."""
        self._end("stopped" if event["code"] == "stopped" else "failed", event, run)

    def _end(self, ending: Ending, event: Event, run: Run) -> None:
        if self._known is None:  # the run failed before it started
            return
        self._send()
        self.end(ending, list(_files(event, run)), run)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.log(waiting)
        self._sent = time.monotonic()


def _files(event: Event, run: Run) -> Iterator[Path]:
    """Yield what is kept of a run beside its numbers."""
    from lowdimfa.services.monitoring.report.page import write_report  # only here: it draws

    yield run.path / "spec.yaml"
    yield write_report(run.path, dict(event))
    if event["event"] == "finished":  # the run itself keeps this only when all callbacks are done
        result = run.path / "report" / "result.json"
        result.write_text(json.dumps(event) + "\n", encoding="utf-8")
        yield result
