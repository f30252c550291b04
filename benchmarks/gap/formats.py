"""What each format of activations costs in accuracy, and saves in bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.claims.claim import Result, RunSettings
from benchmarks.claims.options import picked
from benchmarks.gap.closing import amount, digits_of, run_at_one_rate
from benchmarks.gap.networks import ACCURACY, NETWORKS, Network
from benchmarks.gap.residual import HEAD_INPUT, LANGUAGE_MODEL, by_layers
from benchmarks.gap.rules import READOUT, Rule, label_of
from benchmarks.reporting import markdown_table, mean_and_spread
from lowdimfa.config import Activations, RankConfig, TrainingConfig
from lowdimfa.formats import nbytes
from lowdimfa.partitioning import partition
from lowdimfa.sending import format_between, sent_type

NAMED: tuple[Activations, ...] = ("fp32", "bf16", "int8", "int4")


class Row(NamedTuple):
    """A network, the rule by which it learns, and the ranks that are of interest at its width."""

    network: Network
    rule: Rule
    ranks: tuple[int, ...]


ROWS = {
    "mlp": Row(NETWORKS["mlp"], READOUT, (24, 16, 8)),
    "cnn": Row(NETWORKS["cnn"], READOUT, (4, 2)),
    "cifar": Row(NETWORKS["cifar"], READOUT, (4, 2)),
    "vit": Row(NETWORKS["vit"], READOUT, (16, 8)),
    "char": Row(NETWORKS["char"], READOUT, (16, 8)),
    "lm": Row(LANGUAGE_MODEL, by_layers(HEAD_INPUT, 4), (32, 16)),
}


def run(row: str, network: Network, patterns: Sequence[str], settings: RunSettings) -> dict[str, Any]:
    """Train a network with each format and every seed, at a middle rate of its grid."""
    own = ROWS[row]
    formats = [*NAMED, *map(RankConfig, own.ranks)]
    whole, *others = [_with(own.rule, activations) for activations in formats]
    chosen = picked([whole, *others], patterns, label_of)
    rules = [whole, *(rule for rule in others if rule in chosen)]
    result = run_at_one_rate(network, rules, settings)
    sent = {rule.label: bytes_per_sample(network, rule) for rule in rules}
    return result | {"bytes": sent}


def _with(rule: Rule, activations: Activations | RankConfig) -> Rule:
    label = f"rank {activations.rank}" if isinstance(activations, RankConfig) else activations
    return replace(rule, label=label, activations=activations)


def bytes_per_sample(network: Network, rule: Rule) -> float:
    """Return the bytes of activations that all blocks together send for a sample of a whole batch."""
    example = network.dataset().train.inputs(torch.arange(2))
    plans = partition(network.network(), rule.blocks, example)
    form = format_between(TrainingConfig(1, activations=rule.activations), rule.feedback)
    kinds = [kind for plan in plans[:-1] for kind in plan.outputs.values()]
    return sum(nbytes(sent_type(form, kind, network.batch_size)) for kind in kinds) / network.batch_size


def table(row: str, network: Network, result: Result) -> str:
    """Return the formats of a network side by side; how far they are behind is in points, or a share of the score."""
    found: Mapping[str, Any] = result["summary"][network.label]
    sent, rows = result["bytes"], []
    whole = statistics.fmean(found[NAMED[0]]["scores"])
    for name, entry in found.items():
        mean = statistics.fmean(entry["scores"])
        rows.append(
            (
                name,
                f"{sent[name]:,.0f}",
                f"{sent[NAMED[0]] / sent[name]:.1f}",
                mean_and_spread(entry["scores"], digits_of(network)),
                ""
                if name == NAMED[0]
                else amount(
                    network, network.sign * (whole - mean) / (1 if network.score == ACCURACY else whole)
                ),
                str(len(entry["scores"])),
            )
        )
    header = (
        "activations",
        "bytes per sample",
        "times fewer",
        f"test {network.score}",
        "behind fp32",
        "seeds",
    )
    return f"{network.label}:\n\n{markdown_table(header, rows)}"
