"""How fast a network trains where each process has so much memory and no more, beside pipelines that recompute.

``python -m benchmarks.memory_limit --limits-mib 400,500,700 --write`` trains with one batch size, cut into more and
more micro-batches. Each cut is measured with all systems side by side, as by ``python -m benchmarks.throughput``, in
processes that were started for it: *peak* is ``VmHWM`` of the largest, which has torch (and here Ray) in it. This
runtime is also measured with a window of as few micro-batches as keep its blocks busy, in place of all that staleness
lets it hold. Under a limit counts the fastest cut of a system whose peak is within.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reporting import environment, markdown_table, offer_output, put_out
from benchmarks.throughput.measure import Plan, measure
from benchmarks.throughput.networks import NETWORKS, Network
from benchmarks.throughput.process import WorkerError
from lowdimfa.errors import InputError

FAILED = 1
OURS = ("lowdimfa-s0", "lowdimfa-s1")
PIPELINES = ("1f1b", "1f1b-recompute", "zero-bubble-h1")
MIB = 1 << 20
NARROW = 2
"""Micro-batches in flight for each block, in the narrow window."""


def run(network: Network, blocks: int, cuts: Sequence[int], plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Measure every system with every cut of the batch, and return a row for each.

    Raises
    ------
    InputError
        There is no memory for all systems at once.
    WorkerError
        A system failed.
    """
    rows = []
    for parts in cuts:
        cut = replace(network, microbatches=parts)
        alone = f"single-{blocks}x{parts}"
        rivals = (*PIPELINES, alone, f"{alone}-recompute")
        rows += _measured(cut, blocks, replace(plan, systems=(*OURS, *rivals)), folder / f"{parts}")
        window = NARROW * blocks
        if window < parts:
            narrow = replace(plan, systems=OURS, overrides=(f"train.window={window}",))
            found = _measured(cut, blocks, narrow, folder / f"{parts}-narrow")
            rows += [row | {"system": f"{row['system']}, window {window}"} for row in found]
    return rows


def _measured(network: Network, blocks: int, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    found = measure(network, blocks, plan, folder, lambda line: print(line, file=sys.stderr, flush=True))
    for name, reason in found["not_measured"].items():
        raise WorkerError(f"{name} in {network.microbatches} micro-batches: {reason}")
    return [
        {
            "system": name.replace(f"single-{blocks}x{network.microbatches}", f"single-{blocks}"),
            "parts": network.microbatches,
            "samples_per_second": rate,
            "peak_bytes": found["peak_bytes"][name],
        }
        for name, rate in found["samples_per_second"].items()
    ]


def tables(result: Mapping[str, Any]) -> str:
    """Return what every system does within each limit, and everything that was measured."""
    rows: list[dict[str, Any]] = result["rows"]
    systems = list(dict.fromkeys(row["system"] for row in rows))
    within = [
        (system, *(_fastest(rows, system, limit * MIB) for limit in result["limits_mib"]))
        for system in systems
    ]
    cuts = sorted({row["parts"] for row in rows})
    every = [(system, *(_figures(rows, system, parts) for parts in cuts)) for system in systems]
    return "\n\n".join(
        (
            markdown_table(("samples/s within", *(f"{limit} MiB" for limit in result["limits_mib"])), within),
            markdown_table(("samples/s, peak MiB", *(f"{parts} micro-batches" for parts in cuts)), every),
        )
    )


def _fastest(rows: Sequence[Mapping[str, Any]], system: str, limit: float) -> str:
    fitting = [row for row in rows if row["system"] == system and row["peak_bytes"] <= limit]
    if not fitting:
        return "–"
    best = max(fitting, key=lambda row: float(row["samples_per_second"]))
    return f"{best['samples_per_second']:,.0f} ({best['parts']})"


def _figures(rows: Sequence[Mapping[str, Any]], system: str, parts: int) -> str:
    found = next((row for row in rows if row["system"] == system and row["parts"] == parts), None)
    return "" if found is None else f"{found['samples_per_second']:,.0f}, {found['peak_bytes'] / MIB:,.0f}"


def _numbers(text: str) -> list[int]:
    found = [int(number) for number in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def main() -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_limit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="cnn", choices=NETWORKS, help="(%(default)s)")
    parser.add_argument("--blocks", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1024, help="samples of a step (%(default)s)")
    parser.add_argument("--parts", type=_numbers, default=[4, 16, 64], help="micro-batches (4,16,64)")
    parser.add_argument("--limits-mib", type=_numbers, default=[400, 500, 700], help="(400,500,700)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn (%(default)s)")
    offer_output(parser)
    asked = parser.parse_args()
    network = replace(NETWORKS[asked.network], batch_size=asked.batch_size)
    plan = Plan(asked.rounds, lead=1, steps=asked.steps)
    with tempfile.TemporaryDirectory(prefix="memory-", dir="/tmp") as folder:
        try:
            rows = run(network, asked.blocks, asked.parts, plan, Path(folder))
        except InputError as error:
            print(f"benchmarks.memory_limit: {error.message}", file=sys.stderr)
            return error.exit_code
        except WorkerError as error:
            print(f"could not be measured to the end, so nothing is stored: {error}", file=sys.stderr)
            return FAILED
    result = {
        "benchmark": "memory_limit",
        "network": asked.network,
        "title": network.title,
        "blocks": asked.blocks,
        "batch_size": asked.batch_size,
        "limits_mib": asked.limits_mib,
        "environment": environment(),
        "rows": rows,
    }
    put_out(result, tables(result), asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
