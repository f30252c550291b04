"""What a training step costs by each rule of the chain form: operations counted, and time, on two networks.

``python -m benchmarks.rule_costs`` runs all rules in this process, in turn and in changing order, so that a machine that
slows down slows all of them. The time is that of the processor, so that other work on it counts less, and the mean over
the repetitions, since some rules do more in some steps.
``--write`` stores the result and puts the tables into ``docs/chain-form.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.claims.step_costs import Contestant, Network, counted
from benchmarks.reporting import RESULTS, environment, markdown_table, update_page, write_result
from lowdimfa.models import cnn, mlp
from lowdimfa.network import computing_threads

BACKPROP = "backpropagation"
RULES: Mapping[str, Mapping[str, Any]] = {
    "low-dimensional": {},
    "local": {"rule": "local"},
    "normative": {"rule": "normative"},
    "normative, `fit_every=10`": {"rule": "normative", "fit_every": 10},
    "normative, `refresh_every=10`": {"rule": "normative", "refresh_every": 10},
    "follow": {"rule": "follow"},
}
NETWORKS = (
    Network("MLP, 5 × 512", mlp, (3072, 512, 5, 10), (3, 32, 32), 128, {"r = 40": 40}, "4.0", "C2"),
    Network(
        "CNN, 3 × 2", cnn, (3, (32, 64, 128), 10, 32, 2), (3, 32, 32), 64, {"r = 1/4": 0.25}, "3.1", "C4"
    ),
)


def measure(network: Network, repetitions: int) -> dict[str, Any]:
    """Return what a step costs by each rule."""
    (error_dim,) = network.error_dims.values()
    networks = {BACKPROP: network} | {
        name: replace(network, settings=settings) for name, settings in RULES.items()
    }
    cpu = torch.device("cpu")
    dims = {name: None if name == BACKPROP else error_dim for name in networks}
    operations = {name: sum(counted(one, dims[name]).values()) for name, one in networks.items()}
    entered = {name: Contestant(one, dims[name], cpu, time.process_time) for name, one in networks.items()}
    names = list(entered)
    for number in range(-1, repetitions):  # the first round warms up
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            entered[name].step(keep=number >= 0)
    times = {name: _steps(one) for name, one in entered.items()}
    return {
        name: {
            "gflop": operations[name] / 1e9,
            "milliseconds": 1e3 * statistics.fmean(times[name]),
            "ratio": statistics.fmean(times[name]) / statistics.fmean(times[BACKPROP]),
        }
        for name in names
    }


def _steps(contestant: Contestant) -> list[float]:
    return [sum(parts) for parts in zip(*contestant.seconds.values(), strict=True)]


def tables(result: Mapping[str, Any]) -> str:
    """Return one table for each network."""
    parts = []
    for network, found in result["networks"].items():
        rows = [
            (name, f"{one['gflop']:.2f}", f"{one['milliseconds']:.1f}", f"{one['ratio']:.2f}")
            for name, one in found.items()
        ]
        header = ("errors go back by", "GFLOP", "processor ms per step", "time / backpropagation's")
        parts.append(f"{network}:\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and with ``--write`` store and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rule_costs", description=__doc__)
    parser.add_argument(
        "--repetitions", type=int, default=60, help="steps of each rule (default %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="store the result and update docs/chain-form.md")
    asked = parser.parse_args(arguments)
    with computing_threads(1):
        result = {
            "benchmark": "rule_costs",
            "command": f"python -m benchmarks.rule_costs --repetitions {asked.repetitions} --write",
            "configuration": {
                f"{one.label}, {next(iter(one.error_dims))}": one.configuration() for one in NETWORKS
            },
            "repetitions": asked.repetitions,
            "environment": environment(),
            "networks": {
                f"{one.label}, {next(iter(one.error_dims))}, batch {one.batch_size}": measure(
                    one, asked.repetitions
                )
                for one in NETWORKS
            },
        }
    print(tables(result))
    if asked.write:
        write_result("rule_costs", result)
        update_page(RESULTS.parent.parent / "docs" / "chain-form.md", "costs of rules", tables(result))
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
