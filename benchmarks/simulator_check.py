"""Whether the simulator is right: runs on this machine beside what it says of them.

``python -m benchmarks.simulator_check`` trains on Ray. Of each network a few runs with 2 blocks give the costs of
forward passes, updates, steps and messages; from these alone the simulator predicts the throughput of other
configurations (other staleness, micro-batches, blocks, also more blocks than cores), which are then compared with runs
that it has not seen. Everything is run ``--rounds`` times, in turn, so that a change of the machine's speed meets the
calibration and what is predicted from it alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting import environment, markdown_table, update_page, write_result
from benchmarks.throughput.networks import NETWORKS
from services.run.plan import make_run_plan
from services.simulation.calibrate import Measured, measured_throughput, read_measured
from services.simulation.fit import apart, fit_costs
from services.simulation.setting import Setting
from services.simulation.simulate import schedule_name, simulate
from services.spec import parse_specification
from services.trainer.api import DecoupledTrainer
from services.trainer.cluster import start_ray

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
LIMIT = 0.10
"""Error that the prediction of a throughput may have."""


@dataclass(frozen=True)
class Case:
    """A configuration: a network in blocks, its micro-batches and staleness."""

    network: str
    blocks: int
    staleness: int
    microbatches: int

    def specification(self, steps: int) -> dict[str, Any]:
        """Return the specification of a run of it; Ray need not have as many cores as there are blocks."""
        return NETWORKS[self.network].specification(
            self.blocks,
            self.staleness,
            train={"steps": steps, "microbatches": self.microbatches},
            placement={"cpus_per_block": 0.01},
        )


CALIBRATION = [
    Case(network, 2, staleness, microbatches)
    for network in ("mlp", "cnn")
    for staleness, microbatches in ((0, 4), (1, 8))
]
PREDICTED = [
    Case("mlp", 2, 1, 4),
    Case("mlp", 2, 2, 4),
    Case("mlp", 2, 0, 8),
    Case("mlp", 4, 0, 4),
    Case("mlp", 4, 1, 4),
    Case("cnn", 2, 1, 4),
    Case("cnn", 2, 0, 2),
    Case("cnn", 4, 1, 4),
]


def run(case: Case, steps: int, folder: Path) -> Path:
    """Train a configuration and return its run directory."""
    DecoupledTrainer(case.specification(steps), run_dir=folder).fit()
    return folder


def predict(case: Case, calibration: Sequence[Measured], cores: int) -> float:
    """Return the samples per second of a configuration, from other runs of its network and the plan of its own."""
    plan = make_run_plan(parse_specification(case.specification(1), str(case)))
    blocks, train = plan.network.blocks, plan.specification.train
    size = train.batch_size // train.microbatches
    # Where no block ever waited for an activation, nothing is known of how long they take.
    latencies = [one.setting.latency for one in calibration if one.setting.latency > 0]
    alone, contention = apart(calibration, cores)
    setting = Setting(
        blocks=fit_costs(alone).blocks(
            [block.cost_share for block in blocks], [block.parameters for block in blocks], size
        ),
        microbatches=train.microbatches,
        microbatch_size=size,
        activation_bytes=(0.0,) * (len(blocks) - 1),  # by the loopback interface: part of the latency
        error_bytes=0.0,
        latency=statistics.median(latencies or [0.0]),
        window=train.window,
        cores=cores,
        contention=contention,
    )
    return simulate(setting, schedule_name(train.staleness)).samples_per_second


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Run everything and return the result with the configuration that made it."""
    cores = len(os.sched_getaffinity(0))
    calibration: dict[str, list[Measured]] = {}
    measured: dict[Case, list[float]] = {case: [] for case in (*CALIBRATION, *PREDICTED)}
    disconnect = start_ray(None, blocks=max(case.blocks for case in measured))
    try:
        with tempfile.TemporaryDirectory() as place:
            for number in range(rounds):
                order = list(measured) if number % 2 == 0 else list(reversed(measured))
                for case in order:
                    name = f"{number}-" + "-".join(map(str, asdict(case).values()))
                    folder = run(case, steps, Path(place) / name)
                    measured[case].append(measured_throughput(folder))
                    print(f"{case}: {measured[case][-1]:,.0f} samples/s", file=sys.stderr, flush=True)
                    if case in CALIBRATION:
                        calibration.setdefault(case.network, []).append(read_measured(folder))
    finally:
        disconnect()
    return {
        "benchmark": "simulator_check",
        "command": f"python -m benchmarks.simulator_check --rounds {rounds} --steps {steps} --write",
        "configuration": {"rounds": rounds, "steps": steps, "cores": cores, "limit": LIMIT},
        "environment": environment(),
        "cases": [
            _compared(case, speeds, predict(case, calibration[case.network], cores))
            for case, speeds in measured.items()
        ],
    }


def _compared(case: Case, speeds: Sequence[float], predicted: float) -> dict[str, Any]:
    middle = statistics.median(speeds)
    return asdict(case) | {
        "calibration": case in CALIBRATION,
        "measured": middle,
        "runs": list(speeds),
        "predicted": predicted,
        "error": predicted / middle - 1,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a result as a table and a sentence."""
    header = ("network", "blocks", "staleness", "micro-batches", "measured", "predicted", "error", "used for")
    rows = [
        (
            case["network"],
            *(str(case[key]) for key in ("blocks", "staleness", "microbatches")),
            f"{case['measured']:,.0f}",
            f"{case['predicted']:,.0f}",
            f"{100 * case['error']:+.1f} %",
            "calibration" if case["calibration"] else "check",
        )
        for case in result["cases"]
    ]
    unseen = [abs(case["error"]) for case in result["cases"] if not case["calibration"]]
    within = sum(error <= LIMIT for error in unseen)
    return (
        f"{markdown_table(header, rows)}\n\nSamples per second. Of {len(unseen)} configurations that were not used to "
        f"calibrate, {within} are predicted within {LIMIT:.0%}; largest error {max(unseen):.1%}."
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator_check", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=2, help="runs of each configuration (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with the result as one line of JSON")
    parser.add_argument(
        "--write", action="store_true", help="store the result, and put its table into docs/scaling.md"
    )
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.steps)
    print(table(result), flush=True)
    if arguments.write:
        write_result("simulator_check", result)
        update_page(PAGE, "validation", table(result))
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
