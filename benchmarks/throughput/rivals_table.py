"""One table of all rivals, in the order in which somebody would choose: one machine, a fast cluster, slow links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.reporting import markdown_table
from benchmarks.throughput.figures import best, ratio
from benchmarks.throughput.registry import FORMATS, ZERO_BUBBLE, without_parts
from benchmarks.throughput.systems import OURS
from benchmarks.throughput.tables import place

Result = Mapping[str, Any]

NETWORKS = ("mlp", "cnn", "lm")
FAST_MBIT = 1000
"""From here on links are those of a fast cluster."""

_PIPELINES = {
    "1F1B": ("1f1b", "interleaved-1f1b"),
    "zero-bubble": ZERO_BUBBLE,
    "PipeDream-2BW": ("2bw", "2bw-whole"),
}
_WORDS = dict(zip(FORMATS, ("bfloat16", "8-bit integers"), strict=True))
RIVALS: dict[str, tuple[str, ...]] = {
    "one process": ("single-",),
    "DistributedDataParallel": ("ddp",),
    "GPipe": ("gpipe",),
    **_PIPELINES,
    "PipeDream-2BW, Nesterov": ("2bw-nesterov",),
    **{
        f"{label}, {words}": tuple(f"{name}+{travel}" for name in names)
        for label, names in _PIPELINES.items()
        for travel, words in _WORDS.items()
    },
    "PowerSGD": ("powersgd",),
    "local SGD, outer step (DiLoCo)": ("diloco",),
}
"""By what they are called: names of systems, of which the fastest counts; one that ends in a dash is a beginning."""

OWN = "this runtime: its fastest setting"


def order(result: Result) -> tuple[Any, ...]:
    """Return what results are sorted by: one machine first, then from fast links to slow ones."""
    return -(result["link_mbit"] or float("inf")), result["latency_ms"], _network(result), result["blocks"]


def rivals(results: Sequence[Result]) -> str:
    """Return, for each place and rival, this runtime's samples per second over its, in a column for each setting.

    In brackets is the ratio of the times to the same test score, where those were measured. What was not measured has no
    row, no column, or an empty cell.
    """
    results = [one for one in results if one["network"] in NETWORKS]
    columns = sorted({(_network(one), one["blocks"]) for one in results})
    rows = []
    for where, measured in groupby(sorted(results, key=order), key=where_of):
        by_column = {(_network(one), one["blocks"]): one for one in measured}
        found = [by_column.get(column) for column in columns]
        rows.append((where, OWN, *((one and _own(one)) or "" for one in found)))
        for label, names in RIVALS.items():
            cells = [(one and _cell(one, names)) or "" for one in found]
            if any(cells):
                rows.append(("", label, *cells))
    titles = [f"{NETWORKS[network]}, {blocks}" for network, blocks in columns]
    return measured_columns(("where", "times the samples per second of", *titles), rows)


def where_of(result: Result) -> str:
    """Return the place of a measurement, and what kind of place that is."""
    if result["link_mbit"] is None and not result["latency_ms"]:
        return "**one machine**"
    fast = (result["link_mbit"] or FAST_MBIT) >= FAST_MBIT and not result["latency_ms"]
    return f"**{'a fast cluster' if fast else 'slow links'}**: {place(result)}"


def measured_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without the columns in which nothing stands."""
    kept = [number for number in range(len(header)) if not number or any(row[number] for row in rows)]
    return markdown_table(
        [header[number] for number in kept], [[row[number] for number in kept] for row in rows]
    )


def _network(result: Result) -> int:
    network = result["network"]
    return NETWORKS.index(network) if network in NETWORKS else len(NETWORKS)


def _ours(result: Result) -> str | None:
    names = [name for name in result["samples_per_second"] if name.startswith(OURS)]
    return best(result["rounds"], names)


def _own(result: Result) -> str:
    return (_ours(result) or "").removeprefix(OURS[:-1])


def _cell(result: Result, names: Sequence[str]) -> str:
    ours, others = _ours(result), _matching(result["samples_per_second"], names)
    rate = ratio(result["rounds"], ours, others) if ours and others else None
    times = _times_to_target(result, names)
    return ("" if rate is None else f"{rate:.2f}") + ("" if times is None else f" ({times:.2f})")


def _matching(measured: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [
        one
        for one in measured
        if without_parts(one)[0] in names or any(one.startswith(name) for name in names if name[-1] == "-")
    ]


def _times_to_target(result: Result, names: Sequence[str]) -> float | None:
    """Return the rival's time to the score over this runtime's, or None where one did not get there."""
    reached = {name: one for name, one in result["time_to_target"].items() if one.get("seconds")}
    theirs = [reached[name]["seconds"] for name in _matching(reached, names)]
    ours = [one["seconds"] for name, one in reached.items() if name.startswith(OURS)]
    return min(theirs) / min(ours) if theirs and ours else None
