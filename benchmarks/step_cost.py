"""What a training step costs with each rule, against a plain torch loop on the same model, data and schedule.

``python -m benchmarks.step_cost`` runs all variants in this process, in turn and in changing order, so that a machine
that slows down slows all of them. The figure is the median over the repetitions; a ratio is the median of the ratios
to the plain loop within each repetition. Loading the batch is part of a step; evaluation is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from benchmarks.claims.settings import Update
from benchmarks.gap.networks import NETWORKS, Network
from benchmarks.gap.rules import BACKPROP, HEBBIAN, PROBED, READOUT, Rule
from benchmarks.gap.taps import CASES as TAPS
from benchmarks.gap.trials import in_blocks
from benchmarks.reporting import environment, markdown_table, write_result
from lowdimfa.data import BatchOrder, Dataset
from lowdimfa.network import computing_threads
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer

UPDATE = Update(2e-3)
PLAIN = "plain torch"
VARIANTS = (BACKPROP, READOUT, HEBBIAN, PROBED)
CASES: dict[str, tuple[Network, Sequence[Rule]]] = {
    **{name: (network, VARIANTS) for name, network in NETWORKS.items()},
    **TAPS,
}
LIMITS = {"cnn": 1.05}

Steps = Callable[[int, int], None]
"""Runs the training steps from the first to before the second."""


@dataclass(frozen=True)
class Plan:
    """How long the measurement takes: steps in each timed run, timed runs of each variant, steps to warm up."""

    steps: int
    repetitions: int
    warm_up: int

    @property
    def total_steps(self) -> int:
        """Steps of each variant in all."""
        return self.warm_up + self.steps * self.repetitions


def plain_loop(network: Network, dataset: Dataset, total_steps: int) -> Steps:
    """Return the training loop that anyone writes, on the model as it is."""
    torch.manual_seed(0)
    model = network.network()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=UPDATE.rate, weight_decay=UPDATE.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=UPDATE.rate, total_steps=total_steps)
    order = BatchOrder(network.samples, network.batch_size, 1, seed=0)

    def run(first: int, last: int) -> None:
        model.train()
        for step in range(first, last):
            indices = order.indices(Ticket(step, 0))
            outputs = model(dataset.train.inputs(indices))
            loss = functional.cross_entropy(outputs, dataset.train.targets(indices))
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            loss.item()

    return run


def decoupled_loop(network: Network, dataset: Dataset, rule: Rule, total_steps: int) -> Steps:
    """Return the in-process trainer with a rule."""
    torch.manual_seed(0)
    blocks = in_blocks(network.network(), dataset, rule, UPDATE, total_steps, seed=0)
    order = BatchOrder(network.samples, network.batch_size, 1, seed=0)
    return InProcessTrainer(blocks, dataset, order).run


def measure(name: str, plan: Plan) -> dict[str, Any]:
    """Time all variants on one network, and return the result with the configuration that made it."""
    network, rules = CASES[name]
    dataset = network.dataset().limited(network.samples)
    loops = {PLAIN: plain_loop(network, dataset, plan.total_steps)}
    loops |= {rule.label: decoupled_loop(network, dataset, rule, plan.total_steps) for rule in rules}
    for run in loops.values():
        run(0, plan.warm_up)
    times: dict[str, list[float]] = {variant: [] for variant in loops}
    names = list(loops)
    for repetition in range(plan.repetitions):
        first = plan.warm_up + repetition * plan.steps
        turn = repetition % len(names)
        for variant in names[turn:] + names[:turn]:
            started = time.perf_counter()
            loops[variant](first, first + plan.steps)
            times[variant].append(1e3 * (time.perf_counter() - started) / plan.steps)
    return {
        "benchmark": "step_cost",
        "network": name,
        "command": f"python -m benchmarks.step_cost --networks {name} --steps {plan.steps} "
        f"--repetitions {plan.repetitions} --write",
        "configuration": {
            **network.configuration(),
            "grid": [asdict(UPDATE)],
            "methods": {rule.label: rule.configuration() for rule in rules},
            "steps": plan.steps,
            "repetitions": plan.repetitions,
            "warm_up": plan.warm_up,
        },
        "environment": environment(),
        "variants": {variant: _summary(times[variant], times[PLAIN]) for variant in loops},
        "limit": LIMITS.get(name),
    }


def _summary(times: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(times, plain, strict=True)]
    return {
        "milliseconds": statistics.median(times),
        "ratio": statistics.median(ratios),
        "ratio_of_fastest": min(times) / min(plain),
        "all_milliseconds": times,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return one network's result as a table."""
    rows = [
        (variant, f"{found['milliseconds']:.2f}", f"{found['ratio']:.3f}", f"{found['ratio_of_fastest']:.3f}")
        for variant, found in result["variants"].items()
    ]
    return markdown_table(("variant", "ms per step", "ratio", "ratio of the fastest runs"), rows)


def main() -> None:
    """Time the networks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost", description=__doc__)
    parser.add_argument("--networks", default="cnn,mlp", help=f"some of {','.join(CASES)}")
    parser.add_argument("--steps", type=int, default=20, help="steps per timed run (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=12, help="timed runs (default %(default)s)")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="end with the results as one line of JSON")
    parser.add_argument("--write", action="store_true", help="store the results in benchmarks/results")
    arguments = parser.parse_args()
    plan = Plan(arguments.steps, arguments.repetitions, arguments.warm_up)
    results = {}
    with computing_threads(arguments.threads):
        for name in arguments.networks.split(","):
            results[name] = measure(name, plan)
            print(f"\n{name}: {results[name]['configuration']['model']}\n{table(results[name])}", flush=True)
            if arguments.write:
                write_result(f"step_cost-{name}", results[name])
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
