"""What a coarser tap on feature maps costs in accuracy: ``python -m benchmarks.gap.taps [--networks …] [--seeds N]``.

Each way is trained with one rate, and scored on the validation split alone. Finished runs are kept, as of the claims.
``python -m benchmarks.step_cost --networks taps-cnn,taps-cifar`` has the time that a step takes in the same ways.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from benchmarks.claims.claim import RunSettings
from benchmarks.claims.options import add_run_options, known, run_settings
from benchmarks.claims.settings import Update
from benchmarks.claims.storing import Places
from benchmarks.claims.trials import Run
from benchmarks.gap.networks import NETWORKS, Network
from benchmarks.gap.rules import BACKPROP, FIXED, HEBBIAN, LOCAL, READOUT, Rule
from benchmarks.gap.trials import BlockTrial, made_on
from benchmarks.reporting import markdown_table, mean_and_spread
from benchmarks.throughput.networks import convolutions
from lowdimfa.config import FeedbackConfig
from lowdimfa.errors import InputError
from lowdimfa.grid_tap import GridNormalisedTap
from lowdimfa.network import computing_threads

UPDATE = Update(2e-3)
STAGES = ("2", "4", "6")
"""Where the blocks of the network by convolutions begin: as where it is cut into its stages."""


class Coarse(GridNormalisedTap):
    """The mean over a grid of at most 4×4."""

    cells = 4


class Strided(GridNormalisedTap):
    """One pixel of each cell in place of their mean."""

    def _pool(self, output: Tensor, keepdim: bool = False) -> Tensor:
        rows, columns = self._windows(output.shape) or (1, 1)
        return output[..., ::rows, ::columns]


def tapped(rule: Rule, tap: str, every_layer: bool = False) -> Rule:
    """Return a rule with a tap, maybe with the error at every layer."""
    feedback: FeedbackConfig = replace(rule.feedback, tap=tap, every_layer=every_layer)
    name = tap.rpartition(":")[2].lower()
    return replace(rule, label=f"{rule.label}, {name}{', every layer' * every_layer}", feedback=feedback)


NORMALISED, GRID = tapped(READOUT, "normalised"), tapped(READOUT, "grid-normalised")
OTHERS = [tapped(READOUT, f"benchmarks.gap.taps:{kind.__name__}") for kind in (Coarse, Strided)]
EVERY_LAYER = [tapped(READOUT, tap, every_layer=True) for tap in ("normalised", "grid-normalised")]
BY_OTHERS = [
    tapped(rule, tap) for rule in (HEBBIAN, FIXED, LOCAL) for tap in ("normalised", "grid-normalised")
]

BY_CONVOLUTIONS = Network(
    "CNN (two convolutions per block, each a layer), CIFAR-10",
    convolutions,
    (3, (16, 32, 64), 10, 32, 2),
    "CIFAR-10",
    samples=10_000,
    epochs=4,
)

CASES: dict[str, tuple[Network, list[Rule]]] = {
    "taps-cnn": (NETWORKS["cnn"], [BACKPROP, NORMALISED, GRID]),
    "taps-cifar": (
        BY_CONVOLUTIONS,
        [
            replace(rule, blocks=STAGES)
            for rule in (BACKPROP, NORMALISED, GRID, *OTHERS, *BY_OTHERS, *EVERY_LAYER)
        ],
    ),
}
"""Networks with the ways in which they are trained."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what the command line asks for, print the accuracies, and return the exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap.taps", description=__doc__)
    parser.add_argument("--networks", default=",".join(CASES), help="some of %(default)s")
    add_run_options(parser, Places())
    asked = parser.parse_args(arguments)
    try:
        names, settings = known(asked.networks.split(","), CASES, "--networks"), run_settings(asked)
    except InputError as error:
        print(f"benchmarks.gap.taps: {error.message}", file=sys.stderr)
        return error.exit_code
    with computing_threads(settings.threads):
        for name in names:
            network, rules = CASES[name]
            runs = made_on([network], [partial(validated, network, rule) for rule in rules], settings)
            rows = []
            for rule in rules:
                found = [run.validation for run in runs if run.method == rule.label]
                rows.append((rule.label, mean_and_spread(found), ", ".join(f"{one:.2f}" for one in found)))
            print(f"\n{network.label}\n\n{markdown_table(('method', 'validation (%)', 'by seed'), rows)}")
    return 0


def validated(network: Network, rule: Rule, settings: RunSettings) -> list[Run]:
    """Train a network by a rule with every seed, and score it in validation."""
    return [BlockTrial(network, rule, UPDATE, seed, settings).validated() for seed in range(settings.seeds)]


if __name__ == "__main__":
    sys.exit(main())
