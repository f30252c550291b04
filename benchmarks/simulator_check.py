"""Whether the simulator is right: runs on this machine beside what it says of them.

``python -m benchmarks.simulator_check`` trains on Ray. Of each network three runs with 2 blocks give the costs of forward
passes, updates, steps and messages, and what blocks cost each other; from these alone the simulator predicts the
throughput of other configurations (other staleness, micro-batches, blocks, also more blocks than cores), which are then
compared with what was measured.

The speed of a machine changes. So all configurations of a network are up all the time, asleep but for the one whose turn
it is; each has ``--rounds`` short turns, in changing order, and its throughput is that of its turns together. The first
three tenths of them don't count, as the simulator leaves out the first three tenths of a run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reporting import environment, markdown_table, update_page, write_result
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.runtime import Runtime
from lowdimfa.services.lab.simulation.calibrate import WARM_UP, Measured, read_measured
from lowdimfa.services.lab.simulation.fit import Costs, apart, fit_costs
from lowdimfa.services.lab.simulation.names import schedule_name
from lowdimfa.services.lab.simulation.setting import Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.run_dir import RunDir

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

    @property
    def name(self) -> str:
        """Of the folder of its run."""
        return "-".join(map(str, asdict(self).values()))

    def specification(self) -> dict[str, Any]:
        """Return the specification of a run of it; Ray need not have as many cores as there are blocks."""
        return NETWORKS[self.network].specification(
            self.blocks,
            self.staleness,
            train={"microbatches": self.microbatches},
            placement={"cpus_per_block": 0.01},
        )


CALIBRATION = [
    Case(network, 2, staleness, microbatches)
    for network in ("mlp", "cnn")
    for staleness, microbatches in ((0, 2), (1, 4), (0, 8))
]
PREDICTED = [
    Case("mlp", 2, 1, 8),
    Case("mlp", 2, 2, 4),
    Case("mlp", 2, 0, 4),
    Case("mlp", 4, 0, 4),
    Case("mlp", 4, 1, 4),
    Case("cnn", 2, 1, 8),
    Case("cnn", 2, 0, 4),
    Case("cnn", 4, 1, 4),
]


@dataclass(frozen=True)
class Known:
    """What runs of a network tell of its other configurations."""

    costs: Costs
    contention: float
    latency: float


def calibrate(runs: Sequence[Measured], cores: int) -> Known:
    """Return what some runs of a network tell."""
    alone, contention = apart(runs, cores)
    # Where no block ever waited for an activation, nothing is known of how long they take.
    latencies = [run.setting.latency for run in runs if run.setting.latency > 0]
    return Known(fit_costs(alone), contention, statistics.median(latencies or [0.0]))


def predict(case: Case, known: Known, cores: int) -> float:
    """Return the samples per second of a configuration, from other runs of its network and the plan of its own."""
    plan = make_run_plan(parse_specification(case.specification(), str(case)))
    blocks, train = plan.network.blocks, plan.specification.train
    size = train.batch_size // train.microbatches
    setting = Setting(
        blocks=known.costs.blocks(
            [block.cost_share for block in blocks], [block.parameters for block in blocks], size
        ),
        microbatches=train.microbatches,
        microbatch_size=size,
        activation_bytes=(0.0,) * (len(blocks) - 1),  # by the loopback interface: part of the latency
        error_bytes=0.0,
        latency=known.latency,
        window=train.window,
        cores=cores,
        contention=known.contention,
    )
    return simulate(setting, schedule_name(train.staleness)).samples_per_second


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Run everything and return the result with the configuration that made it."""
    cores = len(os.sched_getaffinity(0))
    cases = [*CALIBRATION, *PREDICTED]
    compared: list[dict[str, Any]] = []
    for network in dict.fromkeys(case.network for case in cases):
        chosen = [case for case in cases if case.network == network]
        with tempfile.TemporaryDirectory() as place:
            compared += _compare(chosen, rounds, steps, cores, Path(place))
    return {
        "benchmark": "simulator_check",
        "command": f"python -m benchmarks.simulator_check --rounds {rounds} --steps {steps} --write",
        "configuration": {"rounds": rounds, "steps": steps, "cores": cores, "limit": LIMIT},
        "environment": environment(),
        "cases": compared,
    }


def _compare(cases: Sequence[Case], rounds: int, steps: int, cores: int, place: Path) -> list[dict[str, Any]]:
    """Return what was measured and predicted of each configuration of a network."""
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    engines = {case.name: yaml.safe_dump(case.specification()) for case in cases}
    blocks = sum(case.blocks for case in cases)
    runtime = Runtime({"engines": engines, "folder": str(place), "address": None, "blocks": blocks})
    try:
        for number in range(rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                seconds[case].append(runtime.steps(case.name, 1, steps)["seconds"])
            print(f"{cases[0].network}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        runtime.close()
    counted = slice(math.ceil(WARM_UP * rounds), None)
    runs = [_read(place / case.name, engines[case.name]) for case in cases if case in CALIBRATION]
    known = calibrate(runs, cores)
    return [_compared(case, steps, seconds[case][counted], predict(case, known, cores)) for case in cases]


def _read(folder: Path, plain: Mapping[str, Any]) -> Measured:
    """Return the costs of a run, whose folder has its timeline alone."""
    specification = parse_specification(dict(plain), str(folder))
    RunDir(folder, resume=False).describe(specification, make_run_plan(specification).describe())
    return read_measured(folder)


def _compared(case: Case, steps: int, seconds: Sequence[float], predicted: float) -> dict[str, Any]:
    samples = NETWORKS[case.network].batch_size * steps
    measured = samples * len(seconds) / sum(seconds)
    return asdict(case) | {
        "calibration": case in CALIBRATION,
        "measured": measured,
        "turns": [samples / one for one in seconds],
        "predicted": predicted,
        "error": predicted / measured - 1,
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
        "--rounds", type=int, default=20, help="turns of each configuration (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn (default %(default)s)")
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
