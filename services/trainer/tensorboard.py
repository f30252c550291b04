"""Event files for TensorBoard, made from a run's own events, in a thread of their own."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from lowdimfa.services.monitoring.journal import Event

CLOSE_SECONDS = 5.0
"""Longest wait for what is still to be written at the end: a storage that hangs must not hold up a run."""

FLUSH_SECONDS = 10.0
"""Pause between writes to the disk."""

WAITING_EVENTS = 10_000
"""Most events that wait to be written; more are dropped."""

_SCALARS = {
    "progress": {
        "loss": "train/loss",
        "accuracy": "train/accuracy",
        "perplexity": "train/perplexity",
        "bits_per_byte": "train/bits_per_byte",
        "samples_per_second": "train/samples_per_second",
        "tokens_per_second": "train/tokens_per_second",
    },
    "evaluated": {
        "test_loss": "test/loss",
        "test_accuracy": "test/accuracy",
        "test_perplexity": "test/perplexity",
        "test_bits_per_byte": "test/bits_per_byte",
    },
}


class Board(Protocol):
    """Shows the course of a run."""

    def begin(self, resume_step: int | None) -> None:
        """Begin, or go on from a step: what an earlier part of the run showed after it is taken back."""

    def saw(self, event: Event) -> None:
        """Take in one event, without waiting."""

    def trouble(self) -> str | None:
        """Return, once, why no more is shown."""

    def close(self) -> None:
        """Write what is still to be written."""


class NoBoard:
    """Shows nothing."""

    def begin(self, resume_step: int | None) -> None:
        """Nothing to begin."""

    def saw(self, event: Event) -> None:
        """Nothing to take in."""

    def trouble(self) -> str | None:
        """Nothing can go wrong."""
        return None

    def close(self) -> None:
        """Nothing to write."""


class TensorBoard:
    """Writes TensorBoard's event files. It never fails a run: after an error it says so and writes no more.

    Parameters
    ----------
    folder
        Gets one file for each part of the run between a start and a stop.
    specification
        YAML text, shown under *Text*.
    """

    def __init__(self, folder: Path, specification: str) -> None:
        self._folder = folder
        self._specification = specification
        self._first_step = 0
        self._waiting: queue.Queue[Event | None] = queue.Queue(WAITING_EVENTS)
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)

    def begin(self, resume_step: int | None) -> None:
        """Start the thread, which begins a file."""
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._thread.start()

    def saw(self, event: Event) -> None:
        """Take in one event; those that a resumed run repeats, and those without numbers, leave no trace.

        After a recovery that went back to an earlier step, what was shown of later ones is taken back.
        """
        wanted = event["event"] == "recovered" or event.get("step", -1) >= self._first_step
        if wanted and self._thread.is_alive():
            self._offer(event)

    def _offer(self, event: Event | None) -> None:
        with contextlib.suppress(queue.Full):  # the storage hangs
            self._waiting.put_nowait(event)

    def trouble(self) -> str | None:
        """Return, once, why no more is written."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def close(self) -> None:
        """Write what is still waiting and end the thread."""
        if self._thread.is_alive():
            self._offer(None)
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # whatever the storage and the library come up with
            self._trouble = f"no more is written for TensorBoard to {self._folder} ({error})"

    def _write(self) -> None:
        from tensorboardX import summary  # only here: not every run has TensorBoard's files
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event as Record

        self._folder.mkdir(exist_ok=True)
        number = sum(1 for _ in self._folder.glob("events.out.tfevents.*"))
        writer = EventsWriter(str(self._folder / "events"), f".{number:04}")
        try:
            self._go_on(writer, self._first_step)
            for event in self._events(writer):
                if event["event"] == "recovered":
                    self._go_on(writer, event["step"] + 1)
                for tag, value in scalars(event):
                    at = {"wall_time": event["time"], "step": event["step"]}
                    writer.write_event(Record(**at, summary=summary.scalar(tag, value)))
        finally:
            writer.close()

    def _go_on(self, writer: Any, step: int) -> None:
        """Begin to show the run from a step on, in place of what was shown from there before."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.proto.event_pb2 import SessionLog

        at = {"wall_time": time.time(), "step": step}
        # TensorBoard drops what it has from the step of such a record on, but takes the first for the run's beginning.
        writer.write_event(Record(**at, session_log=SessionLog(status=SessionLog.START)))
        text = summary.text("specification", _as_code(self._specification))
        writer.write_event(Record(**at, summary=text))

    def _events(self, writer: Any) -> Iterator[Event]:
        """Yield events until the last one, and write them to the disk now and then."""
        written = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                event = self._waiting.get(timeout=FLUSH_SECONDS)
                if event is None:
                    return
                yield event
            if time.monotonic() - written >= FLUSH_SECONDS:
                writer.flush()
                written = time.monotonic()


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the tags and values that an event has for TensorBoard; what isn't finite is left out."""
    found: list[tuple[str, Any]] = [
        (tag, event[key]) for key, tag in _SCALARS.get(event["event"], {}).items() if key in event
    ]
    if event["event"] == "alignment":
        found = [
            (f"alignment/block_{entry['block']}_angle_degrees", entry["angle_degrees"])
            for entry in event["blocks"]
        ]
    for tag, value in found:
        if value is not None and math.isfinite(value):
            yield tag, float(value)


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
