"""The result of the transport's measurements as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.reporting import markdown_table


def tables(found: Mapping[str, Any]) -> str:
    """Return what was measured as tables."""
    return "\n\n".join(table(found[part]) for part, table in _TABLES.items() if part in found)


def _activations(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("activation", "transport", "median ms", "p95 ms", "CPU ms, both ends", "messages/s")
    keys = ("median_ms", "p95_ms", "cpu_ms")
    return markdown_table(
        header, [(*_sent(row), *_figures(row, keys), f"{row['messages_per_second']:.0f}") for row in rows]
    )


def _carriers(rows: Sequence[Mapping[str, Any]]) -> str:
    ends = ("median ms", "p95 ms", "CPU ms, both ends", "times the latency", "the CPU")
    keys = ("median_ms", "p95_ms", "cpu_ms", "ratio_of_latency", "ratio_of_cpu")
    return markdown_table(
        ("tensor", "on one host", *ends), [(*_sent(row), *_figures(row, keys)) for row in rows]
    )


def _broadcast(rows: Sequence[Mapping[str, Any]]) -> str:
    ends = ("median ms to the last", "p95 ms", "gRPC alone: median ms", "p95 ms", "ratio")
    keys = ("median_ms", "p95_ms", "grpc_alone_median_ms", "grpc_alone_p95_ms", "ratio_vs_grpc_alone")
    return markdown_table(
        ("subscribers of the broadcast, 10 KB", *ends),
        [(str(row["subscribers"]), *_figures(row, keys)) for row in rows],
    )


def _overhead(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    ends = ("computation ms", "pipeline ms", "difference ms", "steps/s")
    keys = ("computation_ms", "pipeline_ms", "overhead_ms", "steps_per_second")
    medians = {
        transport: {key: statistics.median(values[key]) for key in keys}
        for transport, values in found.items()
    }
    return markdown_table(
        ("CPU per micro-batch and block", *ends),
        [(transport, *_figures(row, keys)) for transport, row in medians.items()],
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("blocks", "MiB after 100 steps", "MiB after 2000", "in flight at most")
    return markdown_table(
        header,
        [
            (
                str(row["blocks"]),
                *_figures(row, ("early_mib", "late_mib"), 0),
                f"{row['in_flight']} of {row['window']}",
            )
            for row in rows
        ],
    )


def _sent(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['kilobytes']} KB", row["transport"]


def _figures(row: Mapping[str, Any], keys: Sequence[str], digits: int = 2) -> list[str]:
    return [f"{row[key]:.{digits}f}" for key in keys]


_TABLES: dict[str, Callable[[Any], str]] = {
    "activations": _activations,
    "carriers": _carriers,
    "broadcast": _broadcast,
    "overhead": _overhead,
    "memory": _memory,
}
