"""What losses cost: seconds until training goes on, steps that are lost, accuracy that is reached, snapshots' price.

``python -m benchmarks.recovery`` trains 4 blocks on the digits, each an actor on one Ray cluster of this machine. For
each seed: undisturbed in process, then on Ray with ``rejoin`` and with ``restart``, while every block in turn, the head
included, is killed (SIGKILL) at a random step drawn from the seed. What snapshots cost a step is measured in pairs of
undisturbed runs on Ray, with and without them, in changing order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment, markdown_table, mean_and_spread, offer_output, put_out
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.cluster import start_ray

BLOCKS = 4
SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 128, "depth": 4, "classes": 10},
        "blocks": BLOCKS,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"batch_size": 64, "microbatches": 2, "optimizer": {"args": {"lr": 0.001}}},
    "run": {
        "liveness_seconds": 30.0,
        "evaluate_every_epochs": 0,
        "checkpoint_every": 50,
        "snapshot_every": 20,
        "max_recoveries": 1000,
    },
}

Run = dict[str, Any]


def kills(seed: int, count: int, steps: int) -> list[dict[str, Any]]:
    """Draw ``count`` kills, of every block in turn, each at a random step of its own part of the run."""
    draw, part = random.Random(seed), steps // count
    return [
        {"kind": "crash", "block": kill % BLOCKS, "step": kill * part + draw.randrange(part // 4, part)}
        for kill in range(count)
    ]


def train(
    folder: Path,
    seed: int,
    steps: int,
    policy: str,
    faults: Sequence[Mapping[str, Any]] = (),
    engine: str = "ray",
) -> Run:
    """Train once; return accuracy, seconds per step, weights, and the recoveries with the steps that were lost."""
    events: list[dict[str, Any]] = []
    plain = SPECIFICATION | {
        "train": SPECIFICATION["train"] | {"seed": seed, "steps": steps},
        "run": SPECIFICATION["run"] | {"on_failure": policy},
        "drill": {"faults": list(faults)},
    }
    trainer = DecoupledTrainer(plain, engine=engine, run_dir=folder, on_event=events.append)  # type: ignore[arg-type]
    result = trainer.fit()
    return {
        "accuracy": 100 * result.metrics["test_accuracy"],
        "milliseconds_per_step": 1e3 * result.metrics["seconds"] / steps,
        "weights": export_state(CheckpointStore(folder).load(None)),
        "recoveries": [
            {"block": event["blocks"][0], "seconds": event["seconds"], "missed": event["missed"]}
            for event in events
            if event["event"] == "recovered"
        ],
    }


def measure(seeds: int, count: int, steps: int, pairs: int) -> dict[str, Any]:
    """Run everything and return the result with the configuration that made it."""
    policies: dict[str, list[Run]] = {"undisturbed": [], "rejoin": [], "restart": []}
    snapshots: list[float] = []
    disconnect = start_ray(None, blocks=BLOCKS)
    try:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            for seed in range(seeds):
                faults = kills(seed, count, steps)
                policies["undisturbed"].append(
                    train(root / f"plain-{seed}", seed, steps, "fail", engine="local")
                )
                for policy in ("rejoin", "restart"):
                    policies[policy].append(train(root / f"{policy}-{seed}", seed, steps, policy, faults))
            for pair in range(pairs):
                order = ("fail", "rejoin") if pair % 2 else ("rejoin", "fail")
                cost = {
                    policy: train(root / f"pair-{pair}-{policy}", 0, steps, policy)["milliseconds_per_step"]
                    for policy in order
                }
                snapshots.append(cost["rejoin"] / cost["fail"])
    finally:
        disconnect()
    same = [
        all(torch.equal(disturbed["weights"][name], value) for name, value in plain["weights"].items())
        for plain, disturbed in zip(policies["undisturbed"], policies["restart"], strict=True)
    ]
    return {
        "benchmark": "recovery",
        "command": f"python -m benchmarks.recovery --seeds {seeds} --kills {count} --steps {steps} "
        f"--pairs {pairs} --write",
        "configuration": {"specification": SPECIFICATION, "seeds": seeds, "kills": count, "steps": steps},
        "environment": environment(),
        "policies": {
            policy: {
                "accuracy": [run["accuracy"] for run in runs],
                "recoveries": [recovery for run in runs for recovery in run["recoveries"]],
            }
            for policy, runs in policies.items()
        },
        "restart_same_bits": same,
        "snapshots_ratio": snapshots,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a result as tables."""
    accuracies = [
        (policy, mean_and_spread(found["accuracy"]), str(len(found["recoveries"])))
        for policy, found in result["policies"].items()
    ]
    rows = []
    for policy in ("rejoin", "restart"):
        for block in range(BLOCKS):
            found = [one for one in result["policies"][policy]["recoveries"] if one["block"] == block]
            seconds = [one["seconds"] for one in found]
            own = [one["missed"].get(str(block), 0) for one in found]
            others = [steps for one in found for who, steps in one["missed"].items() if who != str(block)]
            name = f"{block} (head)" if block == BLOCKS - 1 else str(block)
            rows.append(
                (
                    policy,
                    name,
                    str(len(found)),
                    f"{statistics.median(seconds):.1f}",
                    f"{max(seconds):.1f}",
                    f"{statistics.median(own):g}, {max(own)}",
                    str(max(others, default=0)),
                )
            )
    header = (
        "policy",
        "block killed",
        "kills",
        "median s",
        "longest s",
        "steps it lacks: median, most",
        "others",
    )
    ratios = result["snapshots_ratio"]
    return "\n\n".join(
        [
            markdown_table(("run", "test accuracy, %", "kills in all"), accuracies),
            markdown_table(header, rows),
            f"restart gave the bits of the undisturbed run: {sum(result['restart_same_bits'])} of "
            f"{len(result['restart_same_bits'])} runs",
            f"step with snapshots over step without: {statistics.median(ratios):.3f} (median of {len(ratios)}, "
            f"{min(ratios):.3f} to {max(ratios):.3f})",
        ]
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each policy (default %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="kills in each of them (default %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="steps of each run (default %(default)s)")
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs for the snapshots' price (default %(default)s)"
    )
    offer_output(parser)
    arguments = parser.parse_args()
    result = measure(arguments.seeds, arguments.kills, arguments.steps, arguments.pairs)
    put_out(result, table(result), arguments)


if __name__ == "__main__":
    main()
