"""Jobs as a person sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

COLOURS = {
    "queued": "yellow",
    "starting": "cyan",
    "running": "bold cyan",
    "stopping": "yellow",
    "finished": "green",
    "failed": "bold red",
    "stopped": "magenta",
}


def jobs_table(jobs: Sequence[dict[str, Any]]) -> Table:
    """Return the table that ``lowdimfa jobs`` prints."""
    rows = [_cells(job) for job in jobs]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, (name, justify) in enumerate(_COLUMNS):
        # All but the last keep their width, whatever that of the terminal.
        widest = max(len(name), *(len(row[column]) for row in rows))
        table.add_column(name, justify=justify, no_wrap=True, min_width=widest)
    table.add_column("detail", overflow="ellipsis", no_wrap=True)
    for job, row in zip(jobs, rows, strict=True):
        table.add_row(
            *(
                Text(cell, COLOURS.get(cell, "") if name == "state" else "")
                for cell, (name, _) in zip(row, _COLUMNS, strict=True)
            ),
            Text("" if job["state"] == "running" else job["detail"].partition("\n")[0]),
        )
    return table


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
        "test accuracy": "" if job["test_accuracy"] is None else f"{100 * job['test_accuracy']:.2f} %",
        "error": f"{job['error']['code']} (exit code {job['error']['exit_code']})" if job["error"] else "",
        "run directory": job["run_dir"],
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items() if value]


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
