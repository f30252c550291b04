"""What a person, or a program, sees of a run while it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from services.trainer.events import Event, to_json

QUIET_SECONDS = 5.0
"""Pause between progress lines where the output is not a terminal."""


class Display(Protocol):
    """Shows events; a context manager."""

    def show(self, event: Event) -> None:
        """Show one event."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class JsonDisplay:
    """One JSON object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed = False

    def show(self, event: Event) -> None:
        """Write one event; a failure is written once, though both the run and the command report it."""
        failure = event["event"] == "failed"
        if event["event"] == "starting" or (failure and self._failed):
            return
        self._failed = failure
        self._stream.write(to_json(event) + "\n")
        self._stream.flush()

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class TextDisplay:
    """A progress bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._bar = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._next_line = 0.0

    def show(self, event: Event) -> None:
        """Show one event."""
        match event["event"]:
            case "starting":
                self._task = self._bar.add_task("starting", total=None)
                self._bar.start()
            case "started":
                self._started(event)
            case "progress":
                self._progress(event)
            case "finished":
                self._bar.stop()
                self._say(_finished(event))
            case "recovering":
                self._bar.update(self._task, description="recovering")
                self._say(_recovering(event))
            case "recovered":
                self._bar.update(self._task, completed=event["step"], description="training")
                self._say(_recovered(event))
            # No "checkpoint_failed": a warning says the same.
            case "plan" | "evaluated" | "alignment" | "checkpoint" | "warning" | "state" as kind:
                self._say(_SENTENCES[kind](event))

    def _started(self, event: Event) -> None:
        where = "one Ray actor each" if event["engine"] == "ray" else "in this process"
        self._say(
            f"{_counted(event['blocks'], 'block', 'blocks')}, {where}; {event['parameters']:,} parameters, "
            f"{_counted(event['error_dim'], 'number', 'numbers')} per error; {event['steps']:,} steps\n"
            f"run directory {event['run_dir']}"
        )
        self._bar.update(self._task, total=event["steps"], completed=event["step"], description="training")

    def _progress(self, event: Event) -> None:
        self._bar.update(self._task, completed=event["step"], description=_numbers(event))
        last = event["step"] == event["steps"]
        if not self._console.is_terminal and (last or time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + QUIET_SECONDS
            self._say(f"step {_numbers(event)}")

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def __enter__(self) -> TextDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _numbers(event: Event) -> str:
    accuracy = "" if event["accuracy"] is None else f"  accuracy {100 * event['accuracy']:5.1f} %"
    left = "" if event["eta_seconds"] is None else f"  {_clock(event['eta_seconds'])} left"
    return (
        f"{event['step']:,}/{event['steps']:,}  epoch {event['epoch']}  loss {event['loss']:.4f}{accuracy}"
        f"  {event['samples_per_second']:,.0f}/s{left}"
    )


def _evaluated(event: Event) -> str:
    accuracy = "" if event["test_accuracy"] is None else f", accuracy {100 * event['test_accuracy']:.2f} %"
    return f"test at step {event['step']:,}: loss {event['test_loss']:.4f}{accuracy}"


def _alignment(event: Event) -> str:
    angles = ", ".join(f"block {entry['block']} {entry['angle_degrees']:.0f}°" for entry in event["blocks"])
    return f"angle between update and true gradient: {angles}"


def _recovering(event: Event) -> str:
    return f"{event['reason']}; {event['policy']} at step {event['step']:,} …"


def _recovered(event: Event) -> str:
    lacking = "".join(
        f"; block {block} lacks {_counted(steps, 'step', 'steps')}"
        for block, steps in event["missed"].items()
        if steps
    )
    return f"goes on from step {event['step']:,} after {event['seconds']:.1f} s{lacking}"


def _plan(event: Event) -> str:
    header = ("block", "layers", "parameters", "input", "output", "cost", "tap", "feedback")
    rows = [_plan_row(block, event["error_dim"]) for block in event["blocks"]]
    parts = _counted(event["microbatches"], "micro-batch", "micro-batches")
    return f"""{aligned([header, *rows])}

{event["parameters"]:,} parameters and {event["feedback_parameters"]:,} feedback weights
{event["error_dim"]} numbers per error for {event["task_dim"]} outputs
{event["steps"]:,} steps of {event["batch_size"]} samples in {parts}, {event["steps_per_epoch"]:,} steps per epoch
window {event["window"]}, staleness {event["staleness"]}"""


def _plan_row(block: dict[str, Any], error_dim: int) -> tuple[str, ...]:
    layers = block["layers"]
    return (
        str(block["index"]),
        layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}",
        f"{block['parameters']:,}",
        *("×".join(map(str, block[key])) or "1" for key in ("input_shape", "output_shape")),
        f"{100 * block['cost_share']:.0f} %",
        block["tap"] or "-",
        f"{block['tap_features']}×{error_dim}" if block["tap"] else "exact",
    )


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "plan": _plan,
    "evaluated": _evaluated,
    "alignment": _alignment,
    "checkpoint": lambda event: f"checkpoint {event['path']}",
    "warning": lambda event: f"warning: {event['message']}",
    "state": lambda event: f"{event['state']}: {event['detail']}" if event["detail"] else event["state"],
}


def _finished(event: Event) -> str:
    accuracy = (
        "" if event["test_accuracy"] is None else f"test accuracy {100 * event['test_accuracy']:.2f} %, "
    )
    return (
        f"finished: {accuracy}test loss {event['test_loss']:.4f} after {event['steps']:,} steps in "
        f"{_clock(event['seconds'])} ({event['samples_per_second']:,.0f} samples/s)"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text with even columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
