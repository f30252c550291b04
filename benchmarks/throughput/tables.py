"""The result of a measurement as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.reporting import markdown_table

PEERS = {
    "1f1b": "1F1B",
    "zero_bubble": "the best zero-bubble schedule",
    "delayed": "PipeDream-2BW",
    "single_process": "one process with as many threads",
}
VARIANTS = {
    "ratio": "",
    "ratio_whole": ", this runtime with whole batches",
    "ratio_layers": ", this runtime with the error at every layer",
    "ratio_layers_whole": ", this runtime with both",
}
RATIOS = {
    **{f"ratio_vs_{peer}": label for peer, label in PEERS.items()},
    "ratio_vs_limit": "the same local work without transport",
    **{
        f"{variant}_vs_{peer}": f"{label}{words}"
        for variant, words in list(VARIANTS.items())[1:]
        for peer, label in PEERS.items()
    },
    **{
        f"ratio_vs_{peer}_{travel}": f"{PEERS[peer]}, both with {words} on the wire"
        for travel, words in {"bf16": "bfloat16", "int8": "8-bit integers"}.items()
        for peer in list(PEERS)[:3]
    },
}


def place(result: Mapping[str, Any]) -> str:
    """Return where a measurement was made."""
    mbit, latency = result["link_mbit"], result["latency_ms"]
    if mbit is None and not latency:
        return "one machine"
    return ", ".join(([f"{mbit:,} Mbit/s"] if mbit else []) + ([f"{latency:g} ms"] if latency else []))


def tables(result: Mapping[str, Any]) -> str:
    """Return everything that a person wants to see."""
    parts = [f"{result['title']}, {result['blocks']} blocks, {place(result)}", _systems(result)]
    ratios = [
        (f"against {label}", f"{result[key]:.2f}")
        for key, label in RATIOS.items()
        if result.get(key) is not None
    ]
    if ratios:
        parts.append(markdown_table(("staleness: 1", "times the samples per second"), ratios))
    parts += [_blocks(result), _machine(result), _target(result)]
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
        "CPU ms per part of a batch",
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
    header = (
        "system",
        "block",
        "busy (all but waiting)",
        "computing",
        "transport CPU ms per part of a batch",
    )
    return markdown_table(header, rows) if rows else ""


def _machine(result: Mapping[str, Any]) -> str:
    rows = [
        (shape, f"{rates['alone']:.0f}", ", ".join(f"{rate:.0f}" for rate in rates["together"]))
        for shape, rates in result["matmul_gflops"].items()
    ]
    return markdown_table(("matrix product", "GFLOP/s alone", "all blocks at once"), rows) if rows else ""


def _target(result: Mapping[str, Any]) -> str:
    rows = []
    for name, found in result["time_to_target"].items():
        if "failure" in found:
            rows.append((name, "not measured", "", found["failure"]))
        elif found["seconds"] is None:
            rows.append((name, "not reached", "", f"{found['score']:.4g}"))
        else:
            steady = f"{found['steady_seconds']:.2f} s" if "steady_seconds" in found else ""
            whole = f"{found['seconds']:.2f} s in {found['steps']} steps"
            rows.append((name, whole, steady, f"{found['score']:.4g}"))
    score = result["score"]
    header = ("system", f"time to {score}", "at the steady pace", f"test {score}")
    return markdown_table(header, rows) if rows else ""
