"""C7: operations and time of a training step by the chain form against backpropagation's, on three networks."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims.c4 import OF_CHANNELS
from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import Gap, behind, operations_to
from benchmarks.claims.methods import generation_label
from benchmarks.claims.step_costs import PARTS, PHASES, Network, by_hand, counted, timed
from benchmarks.claims.storing import Places, stored
from benchmarks.reporting import markdown_table
from lowdimfa.models import cnn, mlp, vit

ENOUGH = 0.2
"""Share of a step's operations that the claim says is saved."""
REPETITIONS = 11
BACKPROP = "backpropagation"

IMAGE = (3, 32, 32)
NETWORKS = (
    Network(
        "MLP, 3 × 2048",
        mlp,
        (3072, 2048, 4, 10),
        IMAGE,
        128,
        {"r = 10": 10, "r = 64": 64, "r = 128 (1/16)": 128, "r = 256 (1/8)": 256, "r = 512 (1/4)": 512},
        "3.0",
        "C2",
    ),
    Network(
        "VGG-like CNN, 64 to 512 channels",
        cnn,
        (3, (64, 128, 256, 512), 10, 32, 1, 0.1),
        IMAGE,
        64,
        {"r = 1/8": 0.125, "r = 1/4": 0.25, "r = 1/2": 0.5},
        "4.1",
        "C4",
    ),
    Network(
        "ViT, 4 blocks, width 256",
        vit,
        (32, 4, 3, 256, 4, 4, 10),
        IMAGE,
        32,
        {"r = 10": 10, "r = 32 (1/8)": 32, "r = 64 (1/4)": 64},
        "5.2",
        "C5",
    ),
)


def run(settings: RunSettings, networks: Iterable[Network] = NETWORKS) -> dict[str, Any]:
    """Count and time all steps; seeds and budget change nothing."""
    runs: list[dict[str, Any]] = []
    configuration: dict[str, Any] = {"repetitions": REPETITIONS}
    for network in networks:
        seconds = timed(network, settings.device, REPETITIONS)
        for method, measured in seconds.items():
            error_dim = None if method == BACKPROP else network.error_dims[method]
            runs.append(
                {
                    "network": network.label,
                    "method": method,
                    "counted": counted(network, error_dim),
                    "by_hand": by_hand(network, error_dim),
                    "seconds": measured,
                }
            )
        configuration[network.label] = network.configuration()
        print(f"C7 {network.label}: done", file=sys.stderr, flush=True)
    return {"configuration": configuration, "runs": runs, "summary": summarise(runs)}


def summarise(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, by network and method, what a step costs and its ratios to backpropagation's.

    A ratio of times is the median of the ratios within each repetition.
    """
    summary: dict[str, dict[str, Any]] = {}
    exact: Mapping[str, Any] = {}
    for entry in runs:
        if entry["method"] == BACKPROP:
            exact = entry
        ours, theirs = _times(entry), _times(exact)
        total = sum(entry["counted"].values())
        summary.setdefault(entry["network"], {})[entry["method"]] = {
            "gflop": total / 1e9,
            "parts": {part: value / 1e9 for part, value in entry["by_hand"].items()},
            "agree": total == sum(entry["by_hand"].values()),
            "saved": 1 - total / sum(exact["counted"].values()),
            "backward_saved": 1 - entry["counted"]["backward"] / exact["counted"]["backward"],
            "milliseconds": 1000 * statistics.median(ours["step"]),
            "time_ratio": {phase: _ratio(ours[phase], theirs[phase]) for phase in ours},
        }
    return summary


def _times(entry: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of each phase, and of whole steps."""
    phases: dict[str, list[float]] = {phase: entry["seconds"][phase] for phase in PHASES}
    return phases | {"step": [sum(parts) for parts in zip(*phases.values(), strict=True)]}


def _ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


Gaps = Mapping[str, Mapping[str, Gap]]
"""By network and method: how far the rule whose operations are counted is behind backpropagation in accuracy."""


def accuracy_gaps(places: Places, networks: Iterable[Network] = NETWORKS) -> Gaps:
    """Return what stored claims say of the first generation's accuracy at the same ``r``, on networks of the kinds."""
    found: dict[str, dict[str, Gap]] = {}
    for network in networks:
        result, gaps = stored(network.accuracy, places), found.setdefault(network.label, {})
        measured = {} if result is None else result["summary"]
        for name, (method, r) in product(measured, network.error_dims.items()):
            for where in ("", OF_CHANNELS):
                label = generation_label("low-dimensional", r, where)
                if label in measured[name]:
                    gaps.setdefault(method, behind(result or {}, name, label))
    return found


def least_operations(places: Places) -> dict[str, tuple[str, float]]:
    """Return by claim what came to backpropagation's accuracy, less half a point, with the least operations.

    And their share of backpropagation's until there. Claims whose stored results don't tell are left out.
    """
    found: dict[str, tuple[str, float]] = {}
    for claim in dict.fromkeys(network.accuracy for network in NETWORKS):
        result = stored(claim, places)
        if result is not None:
            for name, methods in result["summary"].items():
                shares = {one: operations_to(result, name, one) for one in methods if one != BACKPROP}
                for method, share in shares.items():
                    if share is not None and share < found.get(claim, ("", math.inf))[1]:
                        found[claim] = method, share
    return found


def judge(result: Result) -> tuple[Verdict, str]:
    """Reproduced if something comes to backpropagation's accuracy, less half a point, with over 20 % less operations.

    Or if an ``r`` saves as much of a step at which the same rule is level in the end. Partly if some ``r`` saves enough
    of a step, and accuracy at it is lower or unknown.
    """
    places = Places()
    return judge_with(result, accuracy_gaps(places), least_operations(places))


def judge_with(result: Result, gaps: Gaps, least: Mapping[str, tuple[str, float]]) -> tuple[Verdict, str]:
    """Judge by what is known of accuracy, as `judge` does."""
    summary = result["summary"]
    disagreeing = [name for name, methods in summary.items() if not all(m["agree"] for m in methods.values())]
    if disagreeing:
        return "not reproduced", f"The counts and the formulae differ for {'; '.join(disagreeing)}."
    savings = [_saving(name, methods) for name, methods in summary.items()]
    enough = [(name, method) for name, methods in summary.items() for method in _saving_enough(methods)]
    level = [gaps[name][method].matches for name, method in enough if method in gaps.get(name, {})]
    at_equal = [_accuracy(name, method, gaps.get(name, {}).get(method)) for name, method in enough]
    reason = (
        f"Operations of a step by the first generation: {' '.join(savings)} At most a third can be saved, less what the "
        f"first layer needs. The accuracy of the same rule on a network of the kind, where that is saved: "
        f"{'; '.join(at_equal) or 'nowhere'}."
    )
    if least:
        until = (
            f"{share:.2f} of backpropagation's by {method} ({claim})"
            for claim, (method, share) in least.items()
        )
        reason += f" Operations until backpropagation's accuracy less half a point: {'; '.join(until)}."
    if any(level) or any(share < 1 - ENOUGH for _, share in least.values()):
        return "reproduced", reason
    return ("partly" if enough else "not reproduced"), reason


def _accuracy(name: str, method: str, gap: Gap | None) -> str:
    claim = next((network.accuracy for network in NETWORKS if network.label == name), "")
    if gap is None:
        return f"{name}, {method}: not measured"
    return f"{name}, {method}: {gap} points behind backpropagation ({claim}, limit {gap.tolerance:.2f})"


def _saving_enough(methods: Mapping[str, Any]) -> list[str]:
    return [method for method, found in methods.items() if found["saved"] > ENOUGH]


def _saving(name: str, methods: Mapping[str, Any]) -> str:
    saved = [(found["saved"], method) for method, found in methods.items() if method != BACKPROP]
    low, high = min(saved), max(saved)
    above = _saving_enough(methods)
    which = (
        f"over {_percent(ENOUGH):.0f} % with {', '.join(above)}"
        if above
        else f"nowhere over {_percent(ENOUGH):.0f} %"
    )
    times = [found["time_ratio"]["step"] for method, found in methods.items() if method != BACKPROP]
    return (
        f"{name}: {_percent(low[0]):.0f} % ({low[1]}) to {_percent(high[0]):.0f} % ({high[1]}) saved, {which}, in "
        f"{min(times):.2f} to {max(times):.2f} of the time."
    )


def _percent(share: float, digits: int = 0) -> float:
    """Return percent, rounded so that nothing prints as minus zero."""
    return round(100 * share, digits) + 0.0


def tables(result: Result) -> str:
    """Return one table per network."""
    ratios = ("time / backpropagation's: step", "backward", "optimizer")
    header = ("errors go back by", "GFLOP", "saved (%)", "backward saved (%)", "step (ms)", *ratios)
    parts = []
    for name, methods in result["summary"].items():
        rows = []
        for method, found in methods.items():
            rows.append(
                (
                    method,
                    f"{found['gflop']:.2f}",
                    *(f"{_percent(found[key], 1):.1f}" for key in ("saved", "backward_saved")),
                    f"{found['milliseconds']:.0f}",
                    *(f"{found['time_ratio'][phase]:.2f}" for phase in ("step", "backward", "optimizer")),
                )
            )
        batch = result["configuration"][name]["batch_size"]
        parts.append(f"{name}, batch {batch}:\n\n{markdown_table(header, rows)}")
    parts.append(
        f"Operations are those of matrix products and convolutions, counted as they are called and equal to the "
        f"formulae. Times are medians over {result['configuration']['repetitions']} repetitions, ratios within each; "
        f"the output layer has all of its r."
    )
    return "\n\n".join(parts)


def draw(result: Result) -> Figure:
    """Draw the parts of a step's operations, stacked, over backpropagation's total; diamonds are the time's ratio."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(result["summary"]), sharey=True, squeeze=False)[0]
    for axis, (name, methods) in zip(axes, result["summary"].items(), strict=True):
        _bars(axis, methods)
        axis.set_title(name, fontsize=9)
    axes[0].set_ylabel("of backpropagation's step", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    return figure


def _bars(axis: Axes, methods: Mapping[str, Any]) -> None:
    labels, whole = list(methods), methods[BACKPROP]["gflop"]
    bottom = [0.0] * len(labels)
    for part in PARTS:
        heights = [methods[label]["parts"][part] / whole for label in labels]
        axis.bar(labels, heights, bottom=bottom, label=part, width=0.7)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    ratios = [methods[label]["time_ratio"]["step"] for label in labels]
    axis.plot(labels, ratios, "kD", markersize=4, label="time")
    axis.axhline(1 - ENOUGH, color="0.4", linestyle="--", linewidth=0.8, label="20 % saved")
    axis.set_xticks(range(len(labels)), [label.replace(" (", "\n(") for label in labels], rotation=60)
    axis.tick_params(labelsize=8)


CLAIM = Claim(
    name="C7",
    title="Training compute falls by over 20 % at equal accuracy",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
