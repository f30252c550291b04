"""Networks with a residual stream: the error of the hidden state beside that of the logits, and every control."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.gap import finetuning
from benchmarks.gap.networks import PERPLEXITY, TOKENS, Network
from benchmarks.gap.rules import BACKPROP, FIXED, FROZEN, LOCAL, READOUT, Rule, by_muon, changed
from lowdimfa.config import FeedbackConfig
from lowdimfa.models import char_transformer, resnet, vit

WIDTH, DEPTH = 128, 8
"""Of the language model."""

HEAD_INPUT = Rule("error of the head's input", FeedbackConfig(source="head_input"))
NORMALISED = changed(HEAD_INPUT, "normalised tap", tap="normalised", q_start="identity")
HIDDEN = Rule("error of the output layer's input", FeedbackConfig(source="hidden"))


def aiming(rule: Rule, target: float) -> Rule:
    """Return a rule with a target."""
    return replace(rule, target=target)


def in_blocks(rule: Rule, blocks: int, starts: tuple[str, ...] = ()) -> Rule:
    """Return a rule in another number of blocks, or in as many that begin at these layers."""
    return replace(rule, label=f"{rule.label}, K = {blocks}", blocks=starts or blocks)


def by_layers(rule: Rule, blocks: int) -> Rule:
    """Return a rule on the language model in blocks of as many transformer layers."""
    each = DEPTH // blocks
    return in_blocks(rule, blocks, tuple(str(1 + each * block) for block in range(1, blocks)))


def narrower(part: int, rule: Rule = HEAD_INPUT) -> Rule:
    """Return the error of the head's input by a part of its numbers: the leading ones of a running PCA."""
    return changed(rule, f"r = d/{part}", error_dim=WIDTH // part, p_rule="pca")


def with_muon(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules by AdamW, then by Muon."""
    rules = tuple(rules)
    return (*rules, *map(by_muon, rules))


LANGUAGE_MODEL = Network(
    "language model of 8 layers, width 128, Shakespeare in 8,192 tokens, 5.1M tokens seen",
    char_transformer,
    (TOKENS.vocabulary, TOKENS.context, WIDTH, DEPTH, 4),
    TOKENS.label,
    samples=16_000,
    epochs=5,
    batch_size=32,
    score=PERPLEXITY,
)
RESNET = Network(
    "ResNet-20, CIFAR-10, full data, 15 epochs",
    resnet,
    (3, (16, 32, 64), 10, 3),
    "CIFAR-10",
    samples=41_600,
    epochs=15,
)
VIT = Network(
    "vision transformer of 8 layers in 6 blocks, CIFAR-10, full data, 12 epochs",
    vit,
    (32, 4, 3, 64, 8, 4, 10),
    "CIFAR-10",
    samples=41_600,
    epochs=12,
)

ROWS: dict[str, tuple[Network, tuple[Rule, ...]]] = {
    "lm": (
        LANGUAGE_MODEL,
        with_muon(
            (
                BACKPROP,
                aiming(by_layers(HEAD_INPUT, 4), 0.02),
                by_layers(FROZEN, 4),
                aiming(by_layers(narrower(4), 4), 0.03),
                aiming(by_layers(HEAD_INPUT, 8), 0.04),
                aiming(by_layers(narrower(8), 4), 0.06),
                aiming(by_layers(NORMALISED, 4), 0.02),
                aiming(by_layers(NORMALISED, 8), 0.04),
                aiming(by_layers(narrower(4, NORMALISED), 4), 0.03),
                by_layers(HIDDEN, 4),
                by_layers(FROZEN, 8),
                by_layers(LOCAL, 4),
                by_layers(FIXED, 4),
                by_layers(READOUT, 4),
                *(by_layers(rule, 8) for rule in (LOCAL, FIXED, READOUT)),
            )
        ),
    ),
    "resnet": (RESNET, with_muon((BACKPROP, aiming(HEAD_INPUT, 1.0), READOUT, FROZEN, LOCAL, FIXED))),
    "vit6": (
        VIT,
        with_muon(
            (
                BACKPROP,
                aiming(in_blocks(HEAD_INPUT, 6), 1.0),
                *(in_blocks(rule, 6) for rule in (NORMALISED, HIDDEN, READOUT, FROZEN, LOCAL, FIXED)),
            )
        ),
    ),
    "finetune": (
        finetuning.NETWORK,
        with_muon(
            (
                BACKPROP,
                *(aiming(in_blocks(rule, 4, finetuning.STARTS), 0.01) for rule in (HEAD_INPUT, NORMALISED)),
                *(in_blocks(rule, 4, finetuning.STARTS) for rule in (FROZEN, LOCAL, FIXED, READOUT)),
            )
        ),
    ),
}
"""Networks with their rules, in the order in which they are of interest."""
