"""The gap to backpropagation of networks in four blocks, at the task's own error dimension."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.claim import Claim, Result, RunSettings, Verdict
from benchmarks.claims.comparison import STANDARD_ERRORS, edge_of, gap_between, rate_of, result_of, scores_of
from benchmarks.claims.figures import mean_spread
from benchmarks.claims.settings import effort
from benchmarks.gap.networks import ACCURACY, BITS, NETWORKS, Network
from benchmarks.gap.rules import BACKPROP, FIXED, FROZEN, LOCAL, READOUT, Rule, by_muon
from benchmarks.gap.trials import made_on, runs_of, runs_with
from benchmarks.reporting import markdown_table, mean_and_spread

MINUTES = 135.0
"""By the number of runs, from 90 minutes of four rules at three rates."""
USUAL = (BACKPROP, READOUT, LOCAL, FIXED, FROZEN)
RULES = (*USUAL, *map(by_muon, (BACKPROP, READOUT, LOCAL)))
"""Those of the long rows. Muon makes a step of the MLP 17 times as long."""
MIDDLE = 1
"""Of the rates that networks try."""
CONTROLS = (LOCAL, FIXED, FROZEN)
"""What the default has to be clearly ahead of on every network."""


def run(settings: RunSettings) -> dict[str, Any]:
    """Train every network by every usual rule."""
    work = effort(settings, MINUTES)
    return run_on([network.scaled(work) for network in NETWORKS.values()], settings)


def run_on(
    networks: Sequence[Network], settings: RunSettings, rules: Sequence[Rule] = USUAL
) -> dict[str, Any]:
    """Train networks by every rule."""
    tasks = [partial(runs_of, network, rule) for network in networks for rule in rules]
    runs = made_on(networks, tasks, settings)
    return result_of(networks, rules, runs)


def run_at_one_rate(network: Network, rules: Sequence[Rule], settings: RunSettings) -> dict[str, Any]:
    """Train a network by every rule and with every seed, at a middle rate of its grid."""
    update, seeds = network.grid[MIDDLE], range(settings.seeds)
    tasks = [partial(runs_with, network, rule, update, seeds) for rule in rules]
    return result_of([network], rules, made_on([network], tasks, settings))


def judge(result: Result) -> tuple[Verdict, str]:
    """Reached if on every network the gap is within the target and all controls are behind by 2 standard errors.

    Partly, if on some the gap is within the target. A control that a result doesn't have counts as not beaten.
    """
    shown = networks_of(result)
    open_gaps = [_short(network) for network in shown if _gap(result, network) > network.target]
    behind = {
        rule.label: [_short(network) for network in shown if _missed(result, network, rule)]
        for rule in CONTROLS
    }
    closed = len(shown) - len(open_gaps)
    parts = [f"The gap of the default (readout) is within its target on {closed} of {len(shown)} networks"]
    if open_gaps:
        parts[0] += f", not on the {_listed(open_gaps)}"
    for label, names in behind.items():
        ahead = len(shown) - len(names)
        text = f"it is ahead of {label} by more than {STANDARD_ERRORS} standard errors on {ahead} of {len(shown)}"
        parts.append(f"{text}, not on the {_listed(names)}" if names else text)
    reason = f"{'; '.join(parts)}.{_at_edges(result, shown)}"
    if not open_gaps and not any(behind.values()):
        return "reached", reason
    return ("partly" if closed else "not reached"), reason


def _at_edges(result: Result, shown: Sequence[Network]) -> str:
    """Return a sentence on how many rates are the last ones of what was tried, where better ones may lie beyond."""
    cells = [(network.label, label) for network in shown for label in result["summary"][network.label]]
    edges = sum(bool(edge_of(result, *cell)) for cell in cells)
    told = f" The best rate is the lowest or highest of those tried in {edges} of {len(cells)}."
    return told if edges else ""


def tables(result: Result) -> str:
    """Return the table of gaps against their targets, and one of all rules for each network."""
    header = ("network", "score", BACKPROP.label, READOUT.label, "gap", "target", "reached")
    rows = []
    for network in networks_of(result):
        gap = _gap(result, network)
        rows.append(
            (
                network.label,
                network.score,
                *(_scores(result, network, rule) for rule in (BACKPROP, READOUT)),
                amount(network, gap),
                amount(network, network.target),
                "yes" if gap <= network.target else "no",
            )
        )
    return "\n\n".join(
        [markdown_table(header, rows), *(network_table(result, network) for network in networks_of(result))]
    )


def summary(shown: Sequence[tuple[Network, Result]]) -> str:
    """Return the means of the default and its controls on networks, and in bold what the default misses."""
    rules = [
        rule
        for rule in USUAL
        if all(rule.label in result["summary"][network.label] for network, result in shown)
    ]
    rows = []
    for network, result in shown:
        row = [network.label + (" (bits)" if network.score == BITS else "")]
        for rule in rules:
            mean = statistics.fmean(scores_of(result, network.label, rule.label))
            text = f"{mean:.2f}" if network.score == BITS else f"{mean:.1f} %"
            row.append(f"**{text}**" if _missed(result, network, rule) else text)
        rows.append(row)
    names = {READOUT: "broadcast (default)", FROZEN: "frozen"}
    header = ("network and data", *(names.get(rule, rule.label) for rule in rules))
    return f"{markdown_table(header, rows)}\n\n{_LEGEND}"


_LEGEND = (
    "In bold: the default where it is further behind backpropagation than its [target](docs/results.md#gap), and a\n"
    f"control where the default isn't ahead of it by more than {STANDARD_ERRORS} standard errors."
)


def _missed(result: Result, network: Network, rule: Rule) -> bool:
    """Whether the default isn't as near to backpropagation as is wanted, or not clearly ahead of a control."""
    if rule is BACKPROP:
        return False
    if rule is READOUT:
        return _gap(result, network) > network.target
    if rule.label not in result["summary"][network.label]:
        return True
    gap = gap_between(*(scores_of(result, network.label, one.label) for one in (READOUT, rule)))
    return network.sign * gap.points <= gap.noise


def networks_of(result: Result) -> list[Network]:
    """Return the networks that a result is of."""
    return [network for network in NETWORKS.values() if network.label in result["summary"]]


def network_table(result: Result, network: Network, rules: Sequence[Rule] = ()) -> str:
    """Return all rules on a network; gaps are to backpropagation by the same optimiser, in bold beyond a target.

    Beside the default, a control is in bold that it isn't clearly ahead of.
    """
    controls = {rule.label: rule for rule in CONTROLS if READOUT.label in result["summary"][network.label]}
    found: Mapping[str, Any] = result["summary"][network.label]
    targets = {rule.label: rule.target for rule in rules if rule.target is not None}
    rows = []
    for label, entry in found.items():
        gap = "" if label == _reference(label) else amount(network, _gap(result, network, label))
        target = targets.get(label)
        if target is not None and _gap(result, network, label) > target:
            gap = f"**{gap}**"
        aimed = [] if not targets else ["" if target is None else amount(network, target)]
        score = mean_and_spread(entry["scores"], digits_of(network))
        if label in controls and _missed(result, network, controls[label]):
            score = f"**{score}**"
        rate = rate_of(result, network.label, label)
        rows.append((label, score, gap, *aimed, rate, str(len(entry["scores"]))))
    header = ("feedback", f"test {network.score}", "gap", *(["target"] if targets else []), "rate", "seeds")
    return f"{network.label}:\n\n{markdown_table(header, rows)}"


def digits_of(network: Network) -> int:
    """Return how many decimals of a score are shown."""
    return 3 if network.score == BITS else 2


def _scores(result: Result, network: Network, rule: Rule) -> str:
    return mean_and_spread(scores_of(result, network.label, rule.label), digits_of(network))


def _gap(result: Result, network: Network, label: str = READOUT.label) -> float:
    score, reference = (
        statistics.fmean(scores_of(result, network.label, name)) for name in (label, _reference(label))
    )
    return reference - score if network.score == ACCURACY else score / reference - 1


def with_references(rules: Sequence[Rule], chosen: Sequence[Rule]) -> list[Rule]:
    """Return the rules that are chosen, and what their gaps are to, in their order."""
    wanted = {name for rule in chosen for name in (rule.label, _reference(rule.label))}
    return [rule for rule in rules if rule.label in wanted]


def _reference(label: str) -> str:
    """Return the label of backpropagation by the same optimiser."""
    return (
        by_muon(BACKPROP).label
        if label.endswith(by_muon(Rule("", READOUT.feedback)).label)
        else BACKPROP.label
    )


def amount(network: Network, gap: float) -> str:
    """Return a gap for a table: points, or a share of a score of text."""
    return f"{gap:.2f}" if network.score == ACCURACY else f"{100 * gap:.1f} %"


def _short(network: Network) -> str:
    return network.label.partition(",")[0] if "CIFAR" not in network.label else "CNN on CIFAR-10"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def draw(result: Result) -> Figure:
    """Draw every rule's gap on every network, in multiples of the network's target."""
    shown = networks_of(result)
    rules = [
        rule
        for rule in RULES
        if rule.label != _reference(rule.label) and rule.label in result["summary"][shown[0].label]
    ]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rules)
    for number, rule in enumerate(rules):
        places = [index + (number - (len(rules) - 1) / 2) * width for index in range(len(shown))]
        gaps = [_gap(result, network, rule.label) / network.target for network in shown]
        spreads = [_spread(result, network, rule) / network.target for network in shown]
        axes.bar(places, gaps, width, yerr=spreads, capsize=2, label=rule.label, error_kw={"linewidth": 0.8})
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(1, color="0.4", linewidth=1, linestyle="--", label="target")
    axes.set_yscale("symlog", linthresh=2)
    axes.set_yticks(
        [-4, -2, -1, 0, 1, 2, 5, 10, 20, 50], ["−4", "−2", "−1", "0", "1", "2", "5", "10", "20", "50"]
    )
    axes.set_xticks(range(len(shown)), [network.label.replace(", ", ",\n") for network in shown], fontsize=8)
    axes.set_ylabel("gap to backpropagation\n(in targets; lower is better)")
    figure.legend(loc="outside upper center", ncols=6, fontsize=8)
    return figure


def _spread(result: Result, network: Network, rule: Rule) -> float:
    mean, spread = mean_spread(scores_of(result, network.label, rule.label))
    return spread if network.score == ACCURACY else spread / mean


CLAIM = Claim(
    name="GAP",
    title="In 4 blocks, at the task's own error dimension, the broadcast form is as good as backpropagation",
    run=run,
    draw=draw,
    judge=judge,
    tables=tables,
)
