"""What the simulator says of up to 1,024 blocks, and of links from 25 Mbit/s to 100 Gbit/s.

``python -m benchmarks.scaling`` simulates every schedule for every number of blocks and every bandwidth. All blocks are
alike: with more blocks the network is deeper, and each block has as much to do. ``--write`` stores the result and draws
it; ``--draw`` draws what is stored. ``--map`` does only what `benchmarks.scaling_map` has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, environment, markdown_table, update_page, write_result
from benchmarks.scaling_map import map_table, measure_map, measure_trouble, trouble_table
from lowdimfa.services.lab.simulation.names import schedule_name
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.lab.simulation.simulate import simulate

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = (2, 4, 8, 16, 64, 256, 1024)
MEGABITS = (25.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
SCHEDULES = ("gpipe", "1f1b", "zero-bubble", *map(schedule_name, (0, 1, 4)))
DEEP = schedule_name(16)
"""Simulated with the fastest links alone: what it takes to keep so many blocks busy."""

COSTS = BlockCosts(forward=0.010, update=0.020, step=0.005)
MICROBATCHES, MICROBATCH_SIZE = 16, 64
ACTIVATION_BYTES, ERROR_BYTES = 4096.0, 40.0
LATENCY = 0.0005


def setting(blocks: int, megabits: float) -> Setting:
    """Return blocks that are alike, on links of so many Mbit/s."""
    return Setting(
        blocks=(COSTS,) * blocks,
        microbatches=MICROBATCHES,
        microbatch_size=MICROBATCH_SIZE,
        activation_bytes=(ACTIVATION_BYTES,) * (blocks - 1),
        error_bytes=ERROR_BYTES,
        bandwidth=1e6 * megabits,
        latency=LATENCY,
    )


def configuration() -> dict[str, Any]:
    """Return what all blocks have in common."""
    return {
        "forward_ms": 1e3 * COSTS.forward,
        "update_ms": 1e3 * COSTS.update,
        "step_ms": 1e3 * COSTS.step,
        "microbatches": MICROBATCHES,
        "microbatch_size": MICROBATCH_SIZE,
        "activation_bytes": ACTIVATION_BYTES,
        "error_bytes": ERROR_BYTES,
    }


def measure() -> dict[str, Any]:
    """Simulate everything and return the result with the configuration that made it."""
    rows: list[dict[str, Any]] = []
    for blocks in BLOCKS:
        for megabits in MEGABITS:
            for schedule in (*SCHEDULES, *([DEEP] if megabits == MEGABITS[-1] else [])):
                began = time.perf_counter()
                found = simulate(setting(blocks, megabits), schedule).describe()
                seconds = time.perf_counter() - began
                del found["bubble"]
                rows.append({"blocks": blocks, "megabits": megabits, **found, "simulated_in": seconds})
    full = 1 / (COSTS.forward + COSTS.update + COSTS.step / MICROBATCHES)
    return {
        "benchmark": "scaling",
        "command": "python -m benchmarks.scaling --write",
        "configuration": configuration() | {"latency_ms": 1e3 * LATENCY},
        "environment": environment(),
        "limit_samples_per_second": MICROBATCH_SIZE * full,
        "rows": rows,
    }


def measure_contests() -> dict[str, Any]:
    """Simulate who wins where, and what trouble costs."""
    return {
        "benchmark": "scaling-map",
        "command": "python -m benchmarks.scaling --map --write",
        "configuration": configuration(),
        "rows": measure_map(setting),
        "trouble": measure_trouble(setting),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the throughput of every schedule, for the slowest, a middle and the fastest link."""
    names = list(dict.fromkeys(row["schedule"] for row in result["rows"]))
    parts = []
    for megabits in (MEGABITS[0], MEGABITS[2], MEGABITS[-1]):
        rows = []
        for blocks in BLOCKS:
            found = {
                row["schedule"]: row
                for row in result["rows"]
                if (row["blocks"], row["megabits"]) == (blocks, megabits)
            }
            cells = [
                f"{found[name]['samples_per_second']:,.0f} ({found[name]['bubble_mean']:.0%})"
                if name in found
                else ""
                for name in names
            ]
            rows.append((str(blocks), *cells))
        parts.append(f"{rate(megabits)}\n\n{markdown_table(('blocks', *names), rows)}")
    limit = (
        f"Samples per second (idle share of a block); never idle: {result['limit_samples_per_second']:,.0f}."
    )
    return "\n\n".join([*parts, limit])


def rate(megabits: float) -> str:
    """Return a bandwidth in words."""
    return f"{megabits:g} Mbit/s" if megabits < 1000 else f"{megabits / 1000:g} Gbit/s"


def main() -> None:
    """Simulate or draw as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    parser.add_argument(
        "--write", action="store_true", help="store the result, and put pictures and tables into docs"
    )
    parser.add_argument(
        "--draw", action="store_true", help="the same from the stored result, without simulating"
    )
    parser.add_argument("--map", action="store_true", help="who wins where, and nothing else")
    arguments = parser.parse_args()
    makers = (
        {"scaling-map": measure_contests}
        if arguments.map
        else {"scaling": measure, "scaling-map": measure_contests}
    )
    results = {}
    for name, make in makers.items():
        results[name] = json.loads((RESULTS / f"{name}.json").read_text()) if arguments.draw else make()
        for part in parts(name, results[name]).values():
            print(part, end="\n\n", flush=True)
        if arguments.write:
            write_result(name, results[name])
        if arguments.write or arguments.draw:
            publish(name, results[name])
    if arguments.json:
        print(json.dumps(results))


def parts(name: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of a result by their marks in the page."""
    if name == "scaling":
        return {"scaling": table(result)}
    return {"map": map_table(result["rows"], rate), "trouble": trouble_table(result["trouble"])}


def publish(name: str, result: Mapping[str, Any]) -> None:
    """Put pictures and tables into the page."""
    from benchmarks.scaling_plots import draw, draw_map  # only here: matplotlib takes a while to import

    (draw if name == "scaling" else draw_map)(result, DOCS / "figures")
    for mark, text in parts(name, result).items():
        update_page(DOCS / "scaling.md", mark, text)


if __name__ == "__main__":
    main()
