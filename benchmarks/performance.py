"""The tables of docs/performance.md, from the stored results of the benchmarks that measure speed.

``python -m benchmarks.performance`` puts them into the page; it measures nothing. ``--check`` compares instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory_limit import tables as memory_limit
from benchmarks.reporting import RESULTS, update_page
from benchmarks.start import table as start
from benchmarks.throughput import tables as throughput
from benchmarks.throughput.rivals_table import measured_columns, order, rivals
from benchmarks.transport.tables import tables as transport
from benchmarks.tuning import table as tuning

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
Result = Mapping[str, Any]

VARIANTS = {
    "ratio": "",
    "ratio_whole": ", no micro-batches",
    "ratio_layers": ", error at every layer",
    "ratio_layers_whole": ", both",
}
"""Of this runtime at staleness 1: how their ratios begin in a result, and what they are called."""

PEERS = {"1f1b": "1F1B", "zero_bubble": "zero-bubble", "delayed": "2BW", "single_process": "one process"}
"""What each of them is compared with."""

OTHERS: dict[str, Callable[[Result], str]] = {
    "no transport": lambda result: _times(result, "ratio_vs_limit"),
    "busy": lambda result: _times(result, "busy_fraction_min", 3),
    "fewer bytes backward than 1F1B": lambda result: _fewer_bytes(result),
}
"""Further columns of the first table, of the plain variant alone."""


def _times(result: Result, key: str, digits: int = 2) -> str:
    value = result.get(key)
    return "" if value is None else f"{value:.{digits}f}"


def _fewer_bytes(result: Result) -> str:
    backward = result["backward_bytes_per_sample"]
    ours, theirs = backward.get("lowdimfa-s1"), backward.get("1f1b")
    return f"{theirs / ours:.0f} times" if ours and theirs else ""


def _title(result: Result) -> str:
    return f"{result['network']}, {result['blocks']} blocks, {throughput.place(result)}"


def ratios(results: Sequence[Result]) -> str:
    """Return a row of ratios for each variant in each measurement."""
    rows = []
    for result in results:
        for prefix, label in VARIANTS.items():
            against = [_times(result, f"{prefix}_vs_{peer}") for peer in PEERS]
            others = [make(result) if prefix == "ratio" else "" for make in OTHERS.values()]
            if any(against):
                rows.append((_title(result) + label, *against, *others))
    return measured_columns(("", *PEERS.values(), *OTHERS), rows)


def details(result: Result) -> str:
    """Return everything that was measured in one setting."""
    machine = result["environment"]
    made_by = f"`{result['command']}` (torch {machine['torch']}, {machine.get('cores', '?')} cores)"
    body = throughput.tables(result).partition("\n\n")[2]
    return f"### {_title(result)}\n\n{result['title']}. {made_by}.\n\n{body}"


def stored(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Return the stored results of a benchmark."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def write(page: Path, folder: Path = RESULTS) -> None:
    """Put the tables of what is stored into a page.

    Raises
    ------
    InputError
        The page has no place for them.
    """
    measured = sorted(stored(folder, "throughput-*.json"), key=order)
    update_page(page, "rivals", rivals(measured))
    update_page(page, "ratios", ratios(measured))
    update_page(page, "details", "\n\n".join(map(details, measured)))
    for name, tables in (
        ("transport", transport),
        ("start", start),
        ("memory_limit", memory_limit),
        ("tuning", tuning),
    ):
        for result in stored(folder, f"{name}.json"):
            update_page(page, name, tables(result))


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    if not parser.parse_args(arguments).check:
        write(page)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / page.name
        made.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        write(made)
        if made.read_bytes() == page.read_bytes():
            return 0
    print(f"{page} is out of date; run python -m benchmarks.performance", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
