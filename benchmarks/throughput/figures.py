"""From the rounds of a measurement to its figures: medians, ratios within rounds, and what goes into the JSON line."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.throughput.registry import DELAYED, FORMATS, LIMIT, ZERO_BUBBLE, without_parts
from benchmarks.throughput.systems import OURS, VARIANTS

PEERS = {"1f1b": ("1f1b",), "zero_bubble": ZERO_BUBBLE, "delayed": DELAYED}
"""Pipelines that this runtime is compared with, each kind by its fastest."""

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
        Samples of a step, and micro-batches to which times are told: the same for all, also for those without any.
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
        "peaks": answers[0].get("peaks") or [answer["peak_bytes"] for answer in answers],
    }
    if "shares" in answers[0]:
        first = answers[0]
        found |= {
            "backward_wire_bytes_per_sample": per_sample("backward_wire_bytes"),
            "busy": [one["busy"] for one in first["shares"]],
            "computing": [one["computing"] for one in first["shares"]],
            "transport_cpu_ms": [
                1e3 * one / (steps * microbatches) for one in first["transport_cpu_seconds"]
            ],
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
        rates = [
            measured["samples_per_second"]
            for name, measured in one.items()
            if name in others or without_parts(name)[0] in others
        ]
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

    peers = PEERS | {"single_process": tuple(singles)}
    busy, transport = medians(rounds, ours, "busy"), medians(rounds, ours, "transport_cpu_ms")
    found: dict[str, Any] = {
        "samples_per_second": by_system("samples_per_second"),
        **_against(rounds, ours, "ratio", peers | {"limit": (LIMIT,)}),
        **{
            key: value
            for variant in VARIANTS
            for key, value in _against(
                rounds, f"{ours}{variant}", f"ratio{variant.replace('-', '_')}", peers
            ).items()
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
        "peak_bytes_by_process": by_system("peaks"),
        "whole_segment_samples_per_second": by_system("whole_segment_samples_per_second"),
        "other_cpu_fraction": by_system("other_cpu_fraction"),
    }
    for travel in FORMATS:
        if f"{ours}+{travel}" in names:
            packed = {
                f"{peer}_{travel}": tuple(f"{name}+{travel}" for name in others)
                for peer, others in PEERS.items()
            }
            found |= _against(rounds, f"{ours}+{travel}", "ratio", packed)
    return found


def _against(
    rounds: Sequence[Round], ours: str, prefix: str, peers: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """Return our ratios, by ``<prefix>_vs_<peer>``, to the fastest of each kind."""
    return {f"{prefix}_vs_{peer}": ratio(rounds, ours, others) for peer, others in peers.items()}


def best(rounds: Sequence[Round], names: Sequence[str]) -> str | None:
    """Return the system that was fastest by its median over rounds, or None where none was measured."""
    rates = {name: medians(rounds, name, "samples_per_second") for name in names}
    measured = [name for name, rate in rates.items() if isinstance(rate, float)]
    return max(measured, key=lambda name: float(rates[name] or 0)) if measured else None  # type: ignore[arg-type]
