"""C8: first-layer filters of the fully connected network over the error dimension."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.claims.c8_figure import draw, encoded
from benchmarks.claims.cache import key_of
from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import STANDARD_ERRORS
from benchmarks.claims.filters import centre_surround, oriented
from benchmarks.claims.methods import BACKPROP, GENERATIONS, Method, generation, generation_label
from benchmarks.claims.networks import ERROR_DIMS, MLP
from benchmarks.claims.settings import ALIGNING, VALIDATION, Setting, Update, effort
from benchmarks.claims.trials import Trial
from benchmarks.reporting import markdown_table, mean_and_spread

MINUTES = 15.0
IMAGE = (3, 32, 32)
SHOWN = 4
"""Filters that are kept for the figure, of backpropagation and of the rules at the `LOW` and `HIGH` ones."""
UPDATE = Update(1e-3, ALIGNING)
"""Of the weights by all methods: a decay that removes the random start, which would be noise on every filter."""
LOW, HIGH = (1, 2), 64


def methods(setting: Setting) -> tuple[Method, ...]:
    """Return every rule at every ``r``, and backpropagation."""
    steps = setting.steps_per_epoch
    return (*(generation(rule, r, steps) for rule in GENERATIONS for r in ERROR_DIMS), BACKPROP)


def run(settings: RunSettings) -> dict[str, Any]:
    """Train the network of C2 by every method, with one rate and decay, and measure its first layer."""
    setting = replace(MLP.on(settings.device).scaled(effort(settings, MINUTES)), grid=(UPDATE,), grids=())
    runs = [
        _measured(Trial(setting, method, _update(method), seed, settings))
        for method in methods(setting)
        for seed in range(settings.seeds)
    ]
    return {
        "configuration": {
            "networks": {setting.label: setting.configuration()},
            "methods": {method.label: method.configuration() for method in methods(setting)},
            "update": {"rate": UPDATE.rate, "weight_decay": UPDATE.weight_decay},
        },
        "runs": runs,
        "summary": summarise(runs),
        "seconds": round(sum(found["seconds"] for found in runs), 1),
    }


def _update(method: Method) -> Update:
    """Return the update of a method: factors of the weights start from these, and have no decay."""
    return replace(UPDATE, feedback_rate=UPDATE.rate) if method.is_factored else UPDATE


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return, by method, one value per seed of each measure."""
    summary: dict[str, dict[str, list[float]]] = {}
    for entry in runs:
        place = summary.setdefault(entry["method"], {})
        for name in ("centre_surround", "oriented", "rank", "validation"):
            place.setdefault(name, []).append(entry[name])
    return summary


def _measured(trial: Trial) -> dict[str, Any]:
    """Return what a trained network's first layer is like; found in the cache, or trained."""
    key = key_of({"measured": "filters", **trial.about}, trial.settings.device)
    found = trial.settings.cache.get(key)
    if found is None:
        started = time.monotonic()
        filters = first_layer(trial.trained.model)
        found = {
            "seed": trial.seed,
            "validation": round(
                trial.trained.score(trial.setting.dataset().with_validation(VALIDATION).test), 3
            ),
            **measures(filters),
            "filters": encoded(strongest(filters, SHOWN)) if _is_shown(trial) else [],
            "seconds": round(time.monotonic() - started, 2),
        }
        trial.settings.cache.put(key, {"measured": "filters", **trial.about}, found)
        print(
            f"C8 {trial.method.label}, seed {trial.seed}: {found['centre_surround']:.3f} "
            f"({found['seconds']:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    return {"method": trial.method.label, **found}


def _is_shown(trial: Trial) -> bool:
    return trial.seed == 0 and (trial.method == BACKPROP or trial.method.error_dim in (*LOW, HIGH))


def measures(filters: Tensor) -> dict[str, float]:
    """Return the mean indices of all filters, and how many directions they span.

    The last is the participation ratio ``(Σ s²)² / Σ s⁴`` of the singular values of the layer.
    """
    energies = torch.linalg.svdvals(filters.flatten(1).double()).square()
    return {
        "centre_surround": round(float(centre_surround(filters).mean()), 5),
        "oriented": round(float(oriented(filters).mean()), 5),
        "rank": round(float(energies.sum() ** 2 / energies.square().sum()), 3),
    }


def first_layer(model: nn.Module) -> Tensor:
    """Return the first linear layer's weights as images, ``(units, channels, height, width)``."""
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    return layer.weight.detach().cpu().view(-1, *IMAGE)


def strongest(filters: Tensor, count: int) -> Tensor:
    """Return the filters of largest norm."""
    return filters[filters.flatten(1).norm(dim=1).topk(count).indices]


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if every low ``r`` has a larger centre-surround index than both ``r = 64`` and backpropagation.

    By the rule that comes nearest to backpropagation's accuracy in validation at ``r = 64``. Larger is a difference of
    means above two standard errors. Partly, if some low ``r`` has, by whatever rule.
    """
    summary = result["summary"]
    means, ranks, accuracies = (
        {label: statistics.fmean(found[name]) for label, found in summary.items()}
        for name in ("centre_surround", "rank", "validation")
    )
    larger = {rule: [r for r in LOW if _is_larger(summary, rule, r)] for rule in GENERATIONS}
    best = max(GENERATIONS, key=lambda rule: accuracies[generation_label(rule, HIGH)])
    parts = []
    for rule, name in GENERATIONS.items():
        shown = ", ".join(f"{means[generation_label(rule, r)]:.3f}" for r in ERROR_DIMS)
        told = ", ".join(f"{'' if r in larger[rule] else 'not '}larger at r = {r}" for r in LOW)
        parts.append(f"{name} {shown} ({told})")
    spans = ", ".join(
        f"{ranks[label]:.1f} {where}"
        for label, where in (
            (generation_label(best, LOW[0]), f"at r = {LOW[0]}"),
            (generation_label(best, HIGH), f"at r = {HIGH}"),
            (BACKPROP.label, "by backpropagation"),
        )
    )
    reason = (
        f"Mean centre-surround index at r = {', '.join(map(str, ERROR_DIMS))}: {'; '.join(parts)}; backpropagation "
        f"{means[BACKPROP.label]:.3f}. The rule nearest to backpropagation in accuracy at r = {HIGH} is "
        f"{GENERATIONS[best]}; by it the filters span so many directions: {spans}."
    )
    if len(larger[best]) == len(LOW):
        return "reproduced", reason
    return ("partly" if any(larger.values()) else "not reproduced"), reason


def _is_larger(summary: Mapping[str, Any], rule: str, error_dim: int) -> bool:
    """Return whether a rule's index at an ``r`` is above that at the highest one, and above backpropagation's."""
    high = (generation_label(rule, HIGH), BACKPROP.label)
    return all(_exceeds(summary, generation_label(rule, error_dim), other) for other in high)


def _exceeds(summary: Mapping[str, Any], label: str, other: str) -> bool:
    ours, theirs = summary[label]["centre_surround"], summary[other]["centre_surround"]
    squares = [statistics.variance(values) / len(values) for values in (ours, theirs) if len(values) > 1]
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    return difference > STANDARD_ERRORS * math.sqrt(sum(squares))


def tables(result: Result) -> str:
    """Return one row for each method."""
    rows = [
        (
            label,
            mean_and_spread(found["centre_surround"], 3),
            mean_and_spread(found["oriented"], 3),
            mean_and_spread(found["rank"], 1),
            mean_and_spread(found["validation"]),
            str(len(found["rank"])),
        )
        for label, found in result["summary"].items()
    ]
    header = (
        "errors go back by",
        "centre-surround index",
        "oriented index",
        "directions",
        "validation accuracy (%)",
        "seeds",
    )
    return markdown_table(header, rows)


CLAIM = Claim(
    name="C8",
    title="The error's dimension shapes the first layer's receptive fields: centre-surround at low r",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
