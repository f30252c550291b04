"""The result of a measurement as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.reporting import markdown_table

RATIOS = {
    "ratio_vs_1f1b": "1F1B",
    "ratio_vs_zero_bubble": "the best zero-bubble schedule",
    "ratio_vs_single_process": "one process with as many threads",
    "ratio_vs_limit": "the same local work without transport",
    "ratio_whole_vs_1f1b": "1F1B, this runtime with whole batches",
    "ratio_whole_vs_zero_bubble": "the best zero-bubble schedule, this runtime with whole batches",
    "ratio_whole_vs_single_process": "one process with as many threads, this runtime with whole batches",
    "ratio_layers_vs_1f1b": "1F1B, this runtime with the error at every layer",
    "ratio_layers_vs_zero_bubble": "the best zero-bubble schedule, this runtime with the error at every layer",
    "ratio_layers_vs_single_process": "one process with as many threads, this runtime with the error at every layer",
    "ratio_layers_whole_vs_1f1b": "1F1B, this runtime with both",
    "ratio_layers_whole_vs_zero_bubble": "the best zero-bubble schedule, this runtime with both",
    "ratio_layers_whole_vs_single_process": "one process with as many threads, this runtime with both",
    "ratio_vs_1f1b_bf16": "1F1B, both with bfloat16 activations",
    "ratio_vs_zero_bubble_bf16": "the best zero-bubble schedule, both with bfloat16 activations",
}


def tables(result: Mapping[str, Any]) -> str:
    """Return everything that a person wants to see."""
    link = "" if result["link_mbit"] is None else f", links of {result['link_mbit']} Mbit/s"
    parts = [f"{result['title']}, {result['blocks']} blocks{link}", _systems(result)]
    ratios = [
        (f"against {label}", f"{result[key]:.2f}")
        for key, label in RATIOS.items()
        if result.get(key) is not None
    ]
    if ratios:
        parts.append(markdown_table(("staleness: 1", "times the samples per second"), ratios))
    parts += [_blocks(result), _machine(result), _accuracy(result)]
    parts += [f"not measured: {name}: {reason}" for name, reason in result["not_measured"].items()]
    return "\n\n".join(part for part in parts if part)


def _systems(result: Mapping[str, Any]) -> str:
    def cell(key: str, name: str, pattern: str, scale: float = 1.0) -> str:
        value = result[key].get(name)
        return "" if value is None else format(scale * value, pattern)

    rows = [
        (
            name,
            f"{rate:.0f}",
            cell("forward_bytes_per_sample", name, ".0f"),
            cell("backward_bytes_per_sample", name, ".0f"),
            cell("cpu_ms_per_microbatch", name, ".2f"),
            cell("peak_bytes", name, ".0f", 2**-20),
            cell("other_cpu_fraction", name, ".0%"),
        )
        for name, rate in result["samples_per_second"].items()
    ]
    header = (
        "system",
        "samples/s",
        "bytes forward per sample",
        "backward",
        "CPU ms per micro-batch",
        "peak MiB of a process",
        "other work on the machine",
    )
    return markdown_table(header, rows)


def _blocks(result: Mapping[str, Any]) -> str:
    rows = []
    for name, busy in result["busy_fractions"].items():
        computing, transport = result["computing_fractions"][name], result["transport_cpu_ms_by_block"][name]
        for block, share in enumerate(busy):
            rows.append(
                (name, str(block), f"{share:.3f}", f"{computing[block]:.3f}", f"{transport[block]:.2f}")
            )
    header = ("system", "block", "busy (all but waiting)", "computing", "transport CPU ms per micro-batch")
    return markdown_table(header, rows) if rows else ""


def _machine(result: Mapping[str, Any]) -> str:
    rows = [
        (shape, f"{rates['alone']:.0f}", ", ".join(f"{rate:.0f}" for rate in rates["together"]))
        for shape, rates in result["matmul_gflops"].items()
    ]
    return markdown_table(("matrix product", "GFLOP/s alone", "all blocks at once"), rows) if rows else ""


def _accuracy(result: Mapping[str, Any]) -> str:
    rows = []
    for name, found in result["seconds_to_accuracy"].items():
        if "failure" in found:
            rows.append((name, "not measured", found["failure"]))
        elif found["seconds"] is None:
            rows.append((name, "not reached", f"{found['accuracy']:.3f}"))
        else:
            rows.append(
                (name, f"{found['seconds']:.2f} s in {found['steps']} steps", f"{found['accuracy']:.3f}")
            )
    return markdown_table(("system", "time to accuracy", "test accuracy"), rows) if rows else ""
