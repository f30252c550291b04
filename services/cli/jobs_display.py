"""Jobs as a person sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from rich.text import Text

from lowdimfa.services.run.user_code import Modules

COLOURS = {
    "queued": "yellow",
    "starting": "cyan",
    "running": "bold cyan",
    "stopping": "yellow",
    "finished": "green",
    "failed": "bold red",
    "stopped": "magenta",
}


def jobs_table(jobs: Sequence[dict[str, Any]]) -> list[Text]:
    """Return the lines that ``lowdimfa jobs`` prints; one that is too long loses its end, the detail."""
    rows = [_cells(job) for job in jobs]
    widths = [
        max(len(name), *(len(row[column]) for row in rows)) for column, (name, _) in enumerate(_COLUMNS)
    ]
    titles = [_fitted(name, width, justify) for (name, justify), width in zip(_COLUMNS, widths, strict=True)]
    lines = [Text("  ".join([*titles, "detail"]), "dim")]
    for job, row in zip(jobs, rows, strict=True):
        line = Text()
        for cell, width, (name, justify) in zip(row, widths, _COLUMNS, strict=True):
            line.append(_fitted(cell, width, justify), COLOURS.get(cell, "") if name == "state" else "")
            line.append("  ")
        line.append("" if job["state"] == "running" else job["detail"].partition("\n")[0])
        line.rstrip()
        lines.append(line)
    return lines


def _fitted(text: str, width: int, justify: Literal["left", "right"]) -> str:
    return text.ljust(width) if justify == "left" else text.rjust(width)


_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("id", "left"),
    ("state", "left"),
    ("step", "right"),
    ("loss", "right"),
    ("test", "right"),
    ("age", "right"),
)


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    return (
        job["id"],
        job["state"],
        f"{job['step']:,}/{job['steps']:,}" if job["steps"] else "-",
        "-" if job["loss"] is None else f"{job['loss']:.4f}",
        "-" if job["test_accuracy"] is None else f"{100 * job['test_accuracy']:.2f} %",
        age(time.time() - job["created"]),
    )


def job_lines(job: dict[str, Any]) -> list[str]:
    """Return what ``lowdimfa status`` prints."""
    rows = {
        "job": job["id"],
        "owner": job["owner"],
        "state": job["state"] + (f": {job['detail']}" if job["detail"] else ""),
        "created": _moment(job["created"]),
        "started": _moment(job["started"]),
        "ended": _moment(job["ended"]),
        "attempt": str(job["attempt"]) if job["attempt"] > 1 else "",
        "step": f"{job['step']:,} of {job['steps']:,}" if job["steps"] else "",
        "loss": "" if job["loss"] is None else f"{job['loss']:.4f}",
        "evaluation accuracy": "" if job["test_accuracy"] is None else f"{100 * job['test_accuracy']:.2f} %",
        "error": f"{job['error']['code']} (exit code {job['error']['exit_code']})" if job["error"] else "",
        "run directory": job["run_dir"],
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items() if value]


def file_lines(beside: Modules, done: str) -> list[str]:
    """Return what a submission says of the files beside its specification; ``done`` is ``sent``, or will be."""
    sizes = {path: len(text.encode()) for path, text in sorted(beside.files.items())}
    return [
        *(f"{done} {path} ({size:,} bytes)" for path, size in sizes.items()),
        *(f"left out {path}: {reason}" for path, reason in beside.left_out.items()),
    ]


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _moment(seconds: float | None) -> str:
    return (
        "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    )
