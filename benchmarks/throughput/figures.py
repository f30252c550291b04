"""From the rounds of a measurement to its figures: medians, ratios within rounds, and what goes into the JSON line."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.throughput.systems import COARSE, LIMIT, OURS, VARIANTS, ZERO_BUBBLE

Round = dict[str, dict[str, Any]]
"""What each system that ran in a round measured, by name."""


def merge(answers: Sequence[Mapping[str, Any]], count: int, batch: int, microbatches: int) -> dict[str, Any]:
    """Return what the processes of a system measured together in one turn.

    Parameters
    ----------
    answers
        Of its processes; the slowest counts.
    count
        Steps that were timed.
    batch, microbatches
        Samples and micro-batches of a step.
    """
    seconds = max(answer["seconds"] for answer in answers)
    steps = answers[0]["steps"]

    def per_sample(key: str) -> float:
        return float(sum(answer.get(key, 0) for answer in answers) / (steps * batch))

    found = {
        "samples_per_second": count * batch / seconds,
        "cpu_ms_per_microbatch": 1e3 * sum(a["cpu_seconds"] for a in answers) / (steps * microbatches),
        "forward_bytes_per_sample": per_sample("forward_bytes"),
        "backward_bytes_per_sample": per_sample("backward_bytes"),
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
    }
    if "shares" in answers[0]:
        first = answers[0]
        found |= {
            "backward_wire_bytes_per_sample": per_sample("backward_wire_bytes"),
            "busy": [one["busy"] for one in first["shares"]],
            "computing": [one["computing"] for one in first["shares"]],
            "transport_cpu_ms": first["transport_cpu_ms"],
            "whole_segment_samples_per_second": steps * batch / first["whole_seconds"],
        }
    return found


def order_of(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of a round: it begins elsewhere each time, and every second one runs backwards."""
    start = turn * 3 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


def ratio(rounds: Sequence[Round], ours: str, others: Sequence[str]) -> float | None:
    """Return the median over rounds of our rate over the fastest of some others' in the same round, or None."""
    found = []
    for one in rounds:
        rates = [one[name]["samples_per_second"] for name in others if name in one]
        if ours in one and rates:
            found.append(one[ours]["samples_per_second"] / max(rates))
    return statistics.median(found) if found else None


def medians(rounds: Sequence[Round], name: str, key: str) -> float | list[float] | None:
    """Return the median over rounds of a figure of a system; of a list, element by element."""
    values = [one[name][key] for one in rounds if key in one.get(name, {})]
    if not values:
        return None
    if isinstance(values[0], list):
        return [statistics.median(column) for column in zip(*values, strict=True)]
    return float(statistics.median(values))


def summary(rounds: Sequence[Round], names: Sequence[str], threads: int) -> dict[str, Any]:
    """Return the figures of a measurement; ratios are ours at ``staleness: 1`` over others, both in one format.

    Parameters
    ----------
    rounds
        The measured rounds.
    names
        Of all systems.
    threads
        As many as there are blocks, or processor cores if those are fewer: what a single process may have.
    """
    ours = f"{OURS}1"

    def by_system(key: str) -> dict[str, Any]:
        found = {name: medians(rounds, name, key) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    singles = [name for name in names if name.partition("x")[0] == f"single-{threads}"]

    busy, transport = medians(rounds, ours, "busy"), medians(rounds, ours, "transport_cpu_ms")
    found = {
        "samples_per_second": by_system("samples_per_second"),
        "ratio_vs_1f1b": ratio(rounds, ours, ["1f1b"]),
        "ratio_vs_zero_bubble": ratio(rounds, ours, ZERO_BUBBLE),
        "ratio_vs_single_process": ratio(rounds, ours, singles),
        "ratio_vs_limit": ratio(rounds, ours, [LIMIT]),
        **{
            f"ratio{variant.replace('-', '_')}_vs_{peer}": ratio(rounds, f"{ours}{variant}", others)
            for variant in VARIANTS
            for peer, others in (
                ("1f1b", ["1f1b"]),
                ("zero_bubble", ZERO_BUBBLE),
                ("single_process", singles),
            )
        },
        "busy_fraction_min": min(busy) if isinstance(busy, list) else None,
        "busy_fractions": by_system("busy"),
        "computing_fractions": by_system("computing"),
        "forward_bytes_per_sample": by_system("forward_bytes_per_sample"),
        "backward_bytes_per_sample": by_system("backward_bytes_per_sample"),
        "backward_wire_bytes_per_sample": by_system("backward_wire_bytes_per_sample"),
        "transport_cpu_ms_per_microbatch": max(transport) if isinstance(transport, list) else None,
        "transport_cpu_ms_by_block": by_system("transport_cpu_ms"),
        "cpu_ms_per_microbatch": by_system("cpu_ms_per_microbatch"),
        "peak_bytes": {
            name: max(one[name]["peak_bytes"] for one in rounds if name in one)
            for name in names
            if any(name in one for one in rounds)
        },
        "whole_segment_samples_per_second": by_system("whole_segment_samples_per_second"),
        "other_cpu_fraction": by_system("other_cpu_fraction"),
    }
    if f"{ours}{COARSE}" in names:
        coarse = f"{ours}{COARSE}"
        found["ratio_vs_1f1b_bf16"] = ratio(rounds, coarse, [f"1f1b{COARSE}"])
        found["ratio_vs_zero_bubble_bf16"] = ratio(
            rounds, coarse, [f"{name}{COARSE}" for name in ZERO_BUBBLE]
        )
    return found
