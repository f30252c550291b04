"""Event files for TensorBoard, made from a run's own events."""

from __future__ import annotations

import time

from lowdimfa.callback import Callback, Event, Run
from lowdimfa.services.callbacks.numbers import scalars
from lowdimfa.services.spec.dialect import write_yaml

FLUSH_SECONDS = 10.0
"""Most between writes to the disk while the run goes on."""


class TensorBoard(Callback):
    """Writes TensorBoard's event files into the run's directory, one for each part between a start and a stop."""

    background = True

    def started(self, event: Event, run: Run) -> None:
        """Begin a file. What an earlier part of the run showed after this step is taken back."""
        from tensorboardX.event_file_writer import EventsWriter  # only here: not every run has these files

        folder = run.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._writer = EventsWriter(str(folder / "events"), f".{number:04}")
        self._written = time.monotonic()
        self._first_step = event["step"] + 1 if event["step"] else 0
        self._go_on(self._first_step, run)

    def progress(self, event: Event, run: Run) -> None:
        """Show the numbers of an event; those that a resumed run repeats leave no trace."""
        if event["step"] < self._first_step:
            return
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event as Record

        for tag, value in scalars(event):
            at = {"wall_time": event["time"], "step": event["step"]}
            self._writer.write_event(Record(**at, summary=summary.scalar(tag, value)))
        if event["event"] != "progress" or time.monotonic() - self._written >= FLUSH_SECONDS:
            self._writer.flush()
            self._written = time.monotonic()

    evaluated = alignment = progress

    def recovered(self, event: Event, run: Run) -> None:
        """Take back what was shown of later steps, also of those before the one that the run was resumed from."""
        self._first_step = min(self._first_step, event["step"] + 1)
        self._go_on(event["step"] + 1, run)

    def finished(self, event: Event, run: Run) -> None:
        """Write what is still to be written."""
        if hasattr(self, "_writer"):
            self._writer.close()

    failed = finished

    def _go_on(self, step: int, run: Run) -> None:
        """Begin to show the run from a step on, in place of what was shown from there before."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.proto.event_pb2 import SessionLog

        at = {"wall_time": time.time(), "step": step}
        # TensorBoard drops what it has from the step of such a record on, but takes the first for the run's beginning.
        self._writer.write_event(Record(**at, session_log=SessionLog(status=SessionLog.START)))
        text = summary.text("specification", _as_code(write_yaml(run.specification)))
        self._writer.write_event(Record(**at, summary=text))


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
