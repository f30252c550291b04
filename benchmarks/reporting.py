"""What the benchmarks share: tables, the JSON line, stored results, and the environment that made them."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lowdimfa.errors import InputError

RESULTS = Path(__file__).parent / "results"


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return the versions and the machine on which figures were measured, and the device where one was chosen."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    return found if device is None else found | {"device": device_name(device)}


def device_name(device: torch.device) -> str:
    """Return ``cpu``, or the name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Return ``mean ± standard deviation`` over seeds (of the sample), or the value where there is one alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, padded so that it reads well in a terminal too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def write_result(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Store a result with the configuration that made it, by default under ``benchmarks/results``."""
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def offer_output(parser: argparse.ArgumentParser) -> None:
    """Let a command line say what `put_out` does with the result."""
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the result in benchmarks/results")


def put_out(result: Mapping[str, Any], table: str, asked: argparse.Namespace) -> None:
    """Show the table of a result, and store it or print all of it if the command line says so."""
    print(table, flush=True)
    if asked.write:
        write_result(result["benchmark"], result)
    if asked.json:
        print(json.dumps(result))


def update_page(page: Path, mark: str, text: str) -> None:
    """Replace what a page has between ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    page.write_text(updated(page, mark, text), encoding="utf-8")


def updated(page: Path, mark: str, text: str) -> str:
    """Return a page with this text between its marks; see `update_page`."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    if not start or not end:
        raise InputError(str(page), "a page without it", f"a part between marks named {mark!r}")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"
