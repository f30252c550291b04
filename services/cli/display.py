"""What a person, or a program, sees of a run while it goes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowdimfa.services.cli.words import (
    Number,
    clock,
    finite,
    fitted,
    joined,
    language,
    loss,
    measured,
    numbers_of,
)
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.monitoring.line_file import to_json

QUIET_SECONDS = 5.0
"""Pause between progress lines where the output is not a terminal."""

BAR_WIDTH = 16
NARROWEST_BAR = 6
"""Columns of the bar; it goes before numbers do."""


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
        self._split = "test"  # of which samples evaluations are
        self._console = Console(file=stream, highlight=False, emoji=False)
        # What a bar needs: the environment may call anything a terminal for its colours, or a terminal none.
        console = self._console
        self._terminal = stream.isatty() and console.is_terminal and not console.is_dumb_terminal
        self._bar = Progress(
            Course(self._console),
            console=self._console,
            disable=not self._terminal,
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
                self._say(_finished(event, self._split))
            case "evaluated":
                self._say(_evaluated(event, self._split))
            case "recovering":
                self._bar.update(self._task, description="recovering", numbers=[])
                self._say(_recovering(event))
            case "recovered":
                self._go_on(event["step"])
                self._say(_recovered(event))
            # No "checkpoint_failed": a warning says the same.
            case "live" | "plan" | "alignment" | "checkpoint" | "warning" | "state" as kind:
                self._say(_SENTENCES[kind](event), table=kind == "plan")

    def _started(self, event: Event) -> None:
        self._split = event["evaluated_split"]
        where = "one Ray actor each" if event["engine"] == "ray" else "in this process"
        self._say(
            f"{_counted(event['blocks'], 'block', 'blocks')}, {where}; {event['parameters']:,} parameters, "
            f"{_counted(event['error_dim'], 'number', 'numbers')} per error{_OF.get(event['source'], '')}; "
            f"{event['steps']:,} steps\n"
            f"run directory {event['run_dir']}"
        )
        self._bar.update(self._task, total=event["steps"])
        self._go_on(event["step"])

    def _go_on(self, step: int) -> None:
        self._bar.update(self._task, completed=step, description="training", numbers=[])

    def _progress(self, event: Event) -> None:
        self._bar.update(self._task, completed=event["step"], numbers=numbers_of(event))
        last = event["step"] == event["steps"]
        if not self._terminal and (last or time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + QUIET_SECONDS
            self._say(f"step {joined(numbers_of(event))}")

    def _say(self, text: str, table: bool = False) -> None:
        if self._terminal and not table:
            text = wrapped(text, self._console.width)
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> TextDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def wrapped(text: str, width: int) -> str:
    """Break lines between words; what has no blanks, such as a path, stays whole for copying."""
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


class Course(ProgressColumn):
    """A bar and the numbers of a run, as many of them as the terminal has room for."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Table:
        """Return the one line of a run."""
        width = self._console.width - 1  # in the last column some terminals begin a new line
        text = fitted(task.fields.get("numbers") or [Number(task.description, 0)], width)
        bar = min(BAR_WIDTH, width - len(text) - 1)
        line = Table.grid(padding=(0, 1, 0, 0))
        if bar >= NARROWEST_BAR:
            pulse = task.total is None
            line.add_row(ProgressBar(task.total, task.completed, bar, pulse), Text(text, no_wrap=True))
        else:
            line.add_row(Text(text, no_wrap=True))
        return line


def _evaluated(event: Event, split: str) -> str:
    accuracy = "" if event["test_accuracy"] is None else f", accuracy {100 * event['test_accuracy']:.2f} %"
    numbers = f"loss {loss(event['test_loss'])}{language(event)}{accuracy}{measured(event)}"
    return f"{split} at step {event['step']:,}: {numbers}"


def _alignment(event: Event) -> str:
    angles = ", ".join(
        f"block {entry['block']} {finite(entry['angle_degrees']):.0f}°" for entry in event["blocks"]
    )
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
    rows = [
        _plan_row(block, event["feedback_columns"], block is event["blocks"][-1]) for block in event["blocks"]
    ]
    number = sum(block["frozen_parameters"] for block in event["blocks"])
    frozen = f", {number:,} of them frozen," if number else ""
    parts = _counted(event["microbatches"], "micro-batch", "micro-batches")
    epoch = f"{event['steps_per_epoch']:,} steps per epoch{_last_batch(event)}"
    return f"""{aligned([header, *rows])}

{event["parameters"]:,} parameters{frozen} and {event["feedback_parameters"]:,} feedback weights
{event["error_dim"]} numbers per error for {event["task_dim"]} {_SOURCES[event["source"]]}{_projection(event)}
{event["steps"]:,} steps of {event["batch_size"]} samples in {parts}, {epoch}
window {event["window"]}, staleness {event["staleness"]}""" + "".join(
        f"\n{notice}" for notice in event["notices"]
    )


def _projection(event: Event) -> str:
    return f", P {event['p_rule']}" if event["error_dim"] < event["task_dim"] else ""


def _last_batch(event: Event) -> str:
    if event["last_batch_size"]:
        return f", the last of {event['last_batch_size']:,} samples"
    if event["left_out"]:
        return f"\n{_counted(event['left_out'], 'sample', 'samples')} of each epoch left out (data.last_batch: drop)"
    return ""


def _plan_row(block: dict[str, Any], columns: int, head: bool) -> tuple[str, ...]:
    layers, without = block["layers"], "exact" if head else "-"
    return (
        str(block["index"]),
        layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}",
        f"{block['parameters']:,}",
        *(_shape(block[key]) for key in ("input_shape", "output_shape")),
        f"{100 * block['cost_share']:.0f} %",
        block["tap"] or "-",
        _feedback(block, columns) if block["tap"] else without,
    )


def _feedback(block: dict[str, Any], columns: int) -> str:
    return f"{block['tap_features']}×{columns}" + (", identity" if block["q_start"] == "identity" else "")


_OF = {"logits": "", "head_input": " of the head's input", "hidden": " of the output layer's input"}

_SOURCES = {
    "logits": "outputs",
    "head_input": "numbers at the head's input",
    "hidden": "numbers at the output layer's input",
}


def _shape(shape: list[int] | dict[str, list[int]]) -> str:
    """Return a shape, or those of a set by name; what comes from the data by name has none here."""
    if isinstance(shape, dict):
        return ", ".join(f"{name} {_shape(own)}" for name, own in shape.items()) or "data"
    return "×".join(map(str, shape)) or "1"


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "live": lambda event: f"live page {event['address']}",
    "plan": _plan,
    "alignment": _alignment,
    "checkpoint": lambda event: f"checkpoint {event['path']}",
    "warning": lambda event: f"warning: {event['message']}",
    "state": lambda event: f"{event['state']}: {event['detail']}" if event["detail"] else event["state"],
}


def _finished(event: Event, split: str) -> str:
    accuracy = (
        "" if event["test_accuracy"] is None else f"{split} accuracy {100 * event['test_accuracy']:.2f} %, "
    )
    early = f" early ({event['stopped_early']})" if event.get("stopped_early") else ""
    return (
        f"finished{early}: {accuracy}{split} loss {loss(event['test_loss'])}{language(event)} "
        f"after {event['steps']:,} steps in {clock(event['seconds'])} ({event['samples_per_second']:,.0f} samples/s)"
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text with even columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
