"""Both generations of the paper's rule side by side: what is run within a budget, and what is made of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.claims.claim import Result, RunSettings, Verdict
from benchmarks.claims.comparison import MOST_POINTS, Cell, Gap, behind, compare, comparison_table
from benchmarks.claims.figures import method_dots
from benchmarks.claims.methods import BACKPROP, Method, generation
from benchmarks.claims.settings import FEWEST_STEPS, Setting, Update
from benchmarks.claims.step_costs import operations
from benchmarks.claims.training import seconds_per_step
from lowdimfa.errors import InputError

FEWEST_EPOCHS = 4
"""Below so many, a budget leaves methods out before it leaves out epochs; then it leaves out samples."""
OVERHEAD = 1.3
"""Scores and loading, beside the steps."""
FORGETTING = 2.0
"""How often, in units of a factor e, what decays forgets its start in a run, by the larger decays."""
TRIALS = 6
"""Of every method: entries of its grid. All grids have the same rates of the weights."""

Methods = Callable[[Setting], Sequence[Method]]


@dataclass(frozen=True)
class Target:
    """A method that should be behind backpropagation by at most so many points."""

    method: str
    points: float


@dataclass(frozen=True)
class Study:
    """Methods on networks.

    Attributes
    ----------
    networks
        In the order of their importance.
    methods, core
        All methods for a network, and those that the targets name, which a small budget runs on the first network alone.
    targets
        What is judged, on every network.
    pairs
        Labels of a method of the second generation and of one of the first, which it should be ahead of.
    """

    networks: tuple[Setting, ...]
    methods: Methods
    core: Methods
    targets: tuple[Target, ...]
    pairs: tuple[tuple[str, str], ...]

    def run(self, settings: RunSettings) -> dict[str, Any]:
        """Run as much of it as fits the budget."""
        cells, cut = self.plan(settings)
        print("; ".join(cut) or "nothing was cut", file=sys.stderr, flush=True)
        return compare(cells, settings) | {"cut": cut, "operations": operations_of_steps(cells)}

    def plan(self, settings: RunSettings) -> tuple[list[Cell], list[str]]:
        """Return networks with their methods, and what was cut."""
        networks = [network.on(settings.device) for network in self.networks]
        if settings.epochs is not None:
            networks = [replace(network, epochs=settings.epochs) for network in networks]
        first, steps, cut = networks[0], math.inf, list[str]()
        least = self._cells([first], self.core)
        reduced = settings.core
        if settings.budget_minutes is not None:
            step = OVERHEAD * seconds_per_step(first, generation("local", 10, 10), settings.device)
            steps = _affordable(settings, step, self._cells(networks, self.methods), first)
            reduced = reduced or steps < FEWEST_EPOCHS * first.steps_per_epoch
            if reduced:
                steps = _affordable(settings, step, least, first)
        if reduced:
            cut.append(f"only {len(least)} methods on one network")
        fitted = [with_grids(fit(network, steps, cut)) for network in networks[: 1 if reduced else None]]
        return self._cells(fitted, self.core if reduced else self.methods), cut

    def _cells(self, networks: Sequence[Setting], methods: Methods) -> list[Cell]:
        return [(network, method) for network in networks for method in methods(network)]

    def judge(self, result: Result) -> tuple[Verdict, str]:
        """Reproduced if every target is met on every network; partly if some are, or the second generation is ahead.

        It is ahead by more than counts between two methods.
        """
        met, shown = [], []
        for name, found in result["summary"].items():
            for target in self.targets:
                if target.method in found:
                    gap = behind(result, name, target.method)
                    limit = max(target.points, gap.tolerance)
                    met.append(gap.points <= limit and gap.noise <= MOST_POINTS)
                    shown.append(f"{target.method}: {gap} (limit {limit:.2f})")
        ahead = {
            f"{second} {_apart(gap)} {first} (limit {gap.tolerance:.2f})": -gap.points > gap.tolerance
            for name, found in result["summary"].items()
            for second, first in self.pairs
            if second in found and first in found
            for gap in [behind(result, name, second, first)]
        }
        reason = (
            f"Points behind backpropagation: {'; '.join(shown)}. Between generations: {'; '.join(ahead)}."
        )
        if met and all(met):
            return "reproduced", reason
        return ("partly" if any(met) or (ahead and all(ahead.values())) else "not reproduced"), reason


def _apart(gap: Gap) -> str:
    return f"{gap} behind" if gap.points > 0 else f"{-gap.points:.2f} ahead of"


def operations_of_steps(cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
    """Return by network and method the operations of a step; not of greedy local losses, which are no single pass."""
    found: dict[str, dict[str, int]] = {}
    for setting, method in cells:
        if method.rule != "local loss":
            example = setting.dataset().train.inputs(torch.arange(2))
            model = method.applied(setting.network(), example, seed=0).to("meta")
            inputs = torch.empty(setting.batch_size, *example.shape[1:], device="meta")
            targets = torch.empty(setting.batch_size, dtype=torch.int64, device="meta")
            own = found.setdefault(setting.label, {})
            own[method.label] = sum(operations(model, inputs, targets).values())
    return found


def with_grids(setting: Setting) -> Setting:
    """Return a network with `TRIALS` for every method: rates, decays, and for some a rate of the feedback.

    By the decays other than the first one, what decays forgets `FORGETTING` times within the run, whatever the rate.
    Learned feedback of the first generation needs that to align; all others can use it, but in a short run such decays
    are large, and cost more than they bring. The authors give feedback of the rule ``normative`` no decay, and a rate
    many times the weights'; that of ``local`` has the weights' rate and decay. Each rule tries some of both.
    """
    low, high = (update.rate for update in setting.grid[:2])
    decay = setting.grid[0].weight_decay

    # A one-cycle schedule has half its rate on average.
    at_high = float(f"{2 * FORGETTING / (high * setting.steps):.2g}")

    def forgetting(rate: float) -> float:
        return max(decay, float(f"{at_high * high / rate:.3g}"))

    rates = (low, low / 2, high)
    forgets, plain = (tuple(Update(rate, of(rate)) for rate in rates) for of in (forgetting, lambda _: decay))
    kept = tuple(replace(update, feedback_rate=update.rate) for update in (*forgets, plain[0]))
    faster = tuple(replace(forgets[0], feedback_rate=times * low) for times in (10, 30))
    grids = (("normative", (*kept, *faster)), ("local", (*kept, faster[0], forgets[0])))
    return replace(setting, grid=(*forgets, *plain), grids=grids)


def fit(setting: Setting, steps: float, cut: list[str]) -> Setting:
    """Return a network that is trained for at most so many steps, and note what was cut."""
    if steps >= setting.steps:
        return setting
    epochs = max(min(FEWEST_EPOCHS, setting.epochs), int(steps // setting.steps_per_epoch))
    batches = min(setting.steps_per_epoch, math.floor(steps / epochs))
    if batches < FEWEST_STEPS:
        raise InputError(
            "--budget",
            f"minutes for {steps:.0f} steps of '{setting.label}'",
            f"minutes for {FEWEST_STEPS * epochs} steps of each run",
            "Give more minutes or fewer seeds.",
        )
    samples = setting.samples if batches == setting.steps_per_epoch else batches * setting.batch_size
    cut.append(
        f"{setting.label}: {epochs} of {setting.epochs} epochs, {samples} of {setting.samples} samples"
    )
    return replace(setting, epochs=epochs, samples=samples)


def _affordable(settings: RunSettings, step: float, cells: Sequence[Cell], first: Setting) -> float:
    """Return the steps of each run that a budget has: every method is tried with its grid and with each seed."""
    assert settings.budget_minutes is not None
    return 60 * settings.budget_minutes / (step * len(cells) * (TRIALS + settings.seeds - 1))


_NOTES = """\
`normative` reads the weights at every step, and starts again from them twice an epoch; `local` reads them at the start;
the first generation never, and its `P` learns by Oja's rule from errors of trace 1. Feedback has the weights' rate and
decay, but where it has a rate of its own: then no decay. Its gradients aren't clamped. *Best epoch*: test accuracy
after the epoch that was best in validation. A rate with *lowest* or *highest* was that of those tried."""
_TO_THERE = """\
*To there*: the first epoch whose accuracy in validation was at most 0.5
points below backpropagation's last one, mean over seeds (empty where a seed never was), and the operations of all
steps until then beside backpropagation's until its own; the SVD of refreshes isn't among them."""


def tables(result: Result) -> str:
    """Return the table of each network, and what was cut."""
    parts = [f"{name}:\n\n{comparison_table(result, name)}" for name in result["summary"]]
    cut = "; ".join(result["cut"])
    parts.append(f"Cut: {cut}." if cut else "Nothing was cut.")
    has_curves = any("curves" in entry for found in result["summary"].values() for entry in found.values())
    parts.append(f"{_NOTES} {_TO_THERE}" if has_curves else _NOTES)
    return "\n\n".join([*parts, *_uneven(result)])


def _uneven(result: Result) -> Iterator[str]:
    """Yield what a grid of a stored result lacks beside that of other rules: an older one may."""
    for name, network in result["configuration"]["networks"].items():
        others = {update["rate"] for update in network["grid"]}
        for key in (key for key in network if key.startswith("grid of ")):
            if lacking := others - {update["rate"] for update in network[key]}:
                rates = ", ".join(f"{rate:g}" for rate in sorted(lacking))
                yield f"**{name}: `{key.removeprefix('grid of ')}` was not tried at the rate {rates}, others were.**"


def draw(result: Result) -> Figure:
    """Draw the accuracy of every method on the first network."""
    name = next(iter(result["summary"]))
    return method_dots(
        result["summary"][name], f"{name}, {result['configuration']['networks'][name]['data']}"
    )


def over(rules: Sequence[str], error_dims: Sequence[int], setting: Setting, **settings: Any) -> list[Method]:
    """Return rules of the paper's generations at several ``r``."""
    return [generation(rule, r, setting.steps_per_epoch, **settings) for r in error_dims for rule in rules]


def with_backprop(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Return methods with backpropagation before them."""
    return (BACKPROP, *methods)
