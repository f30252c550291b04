"""What a person, or a program, sees of a run while it goes."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from services.cli.options import Format
from services.trainer.events import Event, to_json
from services.trainer.plan import RunPlan

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
        if event["event"] == "failed":
            if self._failed:
                return
            self._failed = True
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
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, numbers="")
        self._next_line = 0.0

    def show(self, event: Event) -> None:
        """Show one event."""
        match event["event"]:
            case "started":
                self._started(event)
            case "progress":
                self._progress(event)
            case "finished":
                self._bar.stop()
                self._say(_finished(event))
            case "evaluated" | "alignment" | "checkpoint" | "warning" as kind:
                self._say({"evaluated": _evaluated, "alignment": _alignment}.get(kind, _plain)(event))

    def _started(self, event: Event) -> None:
        where = "one Ray actor each" if event["engine"] == "ray" else "in this process"
        self._say(
            f"{event['blocks']} blocks, {where}; {event['parameters']:,} parameters, "
            f"{event['error_dim']} numbers per error; {event['steps']:,} steps\nrun directory {event['run_dir']}"
        )
        self._bar.update(self._task, total=event["steps"], completed=event["step"], description="training")

    def _progress(self, event: Event) -> None:
        numbers = _numbers(event)
        self._bar.update(self._task, completed=event["step"], numbers=numbers)
        last = event["step"] == event["steps"]
        if not self._console.is_terminal and (last or time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + QUIET_SECONDS
            self._say(numbers)

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def __enter__(self) -> TextDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _numbers(event: Event) -> str:
    accuracy = "" if event["accuracy"] is None else f"  accuracy {100 * event['accuracy']:5.1f} %"
    left = "" if event["eta_seconds"] is None else f"  {_clock(event['eta_seconds'])} left"
    return (
        f"step {event['step']:,}/{event['steps']:,} ({100 * event['step'] // event['steps']} %)  epoch {event['epoch']}"
        f"  loss {event['loss']:.4f}{accuracy}  {event['samples_per_second']:,.0f} samples/s{left}"
    )


def _evaluated(event: Event) -> str:
    accuracy = "" if event["test_accuracy"] is None else f", accuracy {100 * event['test_accuracy']:.2f} %"
    return f"test at step {event['step']:,}: loss {event['test_loss']:.4f}{accuracy}"


def _alignment(event: Event) -> str:
    angles = ", ".join(f"block {entry['block']} {entry['angle_degrees']:.0f}°" for entry in event["blocks"])
    return f"angle between update and true gradient: {angles}"


def _plain(event: Event) -> str:
    return f"checkpoint {event['path']}" if event["event"] == "checkpoint" else f"warning: {event['message']}"


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


def show_plan(plan: RunPlan, form: Format) -> None:
    """Show what a run would do."""
    train = plan.specification.train
    described = plan.network.describe(train.effective_window, plan.order.steps_per_epoch)
    if form is Format.json:
        typer.echo(to_json({"event": "plan"} | described))
        return
    table = Table("block", "layers", "parameters", "input", "output", "share of cost", "tap", "Q")
    for block in described["blocks"]:
        table.add_row(*_plan_row(block, described["error_dim"]))
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(
        f"{described['parameters']:,} parameters and {described['feedback_parameters']:,} feedback weights; "
        f"{described['error_dim']} of {described['task_dim']} error dimensions; {described['steps']:,} steps of "
        f"{train.batch_size} samples in {train.microbatches} micro-batches; window {described['window']}, "
        f"staleness {described['staleness']}",
        markup=False,
    )


def _plan_row(block: dict[str, Any], error_dim: int) -> list[str]:
    layers = block["layers"]
    names = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    shapes = ["×".join(map(str, block[key])) or "1" for key in ("input_shape", "output_shape")]
    weights = f"{block['tap_features']}×{error_dim}" if block["tap"] else "exact"
    cost = f"{100 * block['cost_share']:.0f} %"
    return [
        str(block["index"]),
        names,
        f"{block['parameters']:,}",
        *shapes,
        cost,
        block["tap"] or "head",
        weights,
    ]
