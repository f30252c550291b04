"""The result of the transport's measurements as tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.reporting import markdown_table


def tables(found: Mapping[str, Any]) -> str:
    """Return what was measured as tables."""
    made = []
    if "activations" in found:
        header = ("activation", "transport", "median ms", "p95 ms", "CPU ms, both ends", "messages/s")
        rows = [
            (
                f"{row['kilobytes']} KB",
                row["transport"],
                *(f"{row[key]:.2f}" for key in ("median_ms", "p95_ms", "cpu_ms")),
                f"{row['messages_per_second']:.0f}",
            )
            for row in found["activations"]
        ]
        made.append(markdown_table(header, rows))
    if "carriers" in found:
        keys = ("median_ms", "p95_ms", "cpu_ms", "ratio_of_latency", "ratio_of_cpu")
        rows = [
            (f"{row['kilobytes']} KB", row["transport"], *(f"{row[key]:.2f}" for key in keys))
            for row in found["carriers"]
        ]
        header = (
            "tensor",
            "on one host",
            "median ms",
            "p95 ms",
            "CPU ms, both ends",
            "times the latency",
            "the CPU",
        )
        made.append(markdown_table(header, rows))
    if "broadcast" in found:
        keys = ("median_ms", "p95_ms", "grpc_alone_median_ms", "grpc_alone_p95_ms", "ratio_vs_grpc_alone")
        rows = [(str(row["subscribers"]), *(f"{row[key]:.2f}" for key in keys)) for row in found["broadcast"]]
        header = (
            "subscribers of the broadcast, 10 KB",
            "median ms to the last",
            "p95 ms",
            "gRPC alone: median ms",
            "p95 ms",
            "ratio",
        )
        made.append(markdown_table(header, rows))
    if "overhead" in found:
        keys = ("computation_ms", "pipeline_ms", "overhead_ms", "steps_per_second")
        medians = [
            (transport, *(f"{statistics.median(values[key]):.2f}" for key in keys))
            for transport, values in found["overhead"].items()
        ]
        header = (
            "CPU per micro-batch and block",
            "computation ms",
            "pipeline ms",
            "difference ms",
            "steps/s",
        )
        made.append(markdown_table(header, medians))
    if "memory" in found:
        keys = ("early_mib", "late_mib")
        rows = [
            (
                str(row["blocks"]),
                *(f"{row[key]:.0f}" for key in keys),
                f"{row['in_flight']} of {row['window']}",
            )
            for row in found["memory"]
        ]
        header = ("blocks", "MiB after 100 steps", "MiB after 2000", "in flight at most")
        made.append(markdown_table(header, rows))
    return "\n\n".join(made)
