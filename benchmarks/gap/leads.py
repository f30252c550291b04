"""What was tried to bring the error of the hidden state nearer to backpropagation, at one rate, in minutes of one core.

Networks with a residual stream that are small enough for three seeds of everything; the long rows have less of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.gap.networks import PERPLEXITY, SMALL_TOKENS, Network
from benchmarks.gap.residual import HEAD_INPUT, HIDDEN, NORMALISED, by_layers, with_muon
from benchmarks.gap.rules import BACKPROP, FIXED, FROZEN, READOUT, Rule, changed
from lowdimfa.models import char_transformer, vit

WIDTH, DEPTH = 96, 8
LANGUAGE_MODEL = Network(
    f"language model of {DEPTH} layers, width {WIDTH}, Shakespeare in 4,096 tokens, 0.54M tokens seen",
    char_transformer,
    (SMALL_TOKENS.vocabulary, SMALL_TOKENS.context, WIDTH, DEPTH, 4),
    SMALL_TOKENS.label,
    samples=11_200,
    epochs=1,
    batch_size=16,
    score=PERPLEXITY,
)
VIT = Network(
    "vision transformer of 8 layers, Fashion-MNIST, 10,000 samples, 8 epochs",
    vit,
    (28, 7, 1, 64, 8, 4, 10),
    "Fashion-MNIST",
    samples=10_000,
    epochs=8,
)


def of_rank(error_dim: int, p_rule: str, name: str) -> Rule:
    """Return the error of the head's input by fewer numbers."""
    return changed(HEAD_INPUT, f"r = {error_dim} by {name}", error_dim=error_dim, p_rule=p_rule)


def _on_four(*rules: Rule) -> tuple[Rule, ...]:
    return tuple(by_layers(rule, 4) for rule in rules)


PCA = of_rank(WIDTH // 4, "pca", "running PCA")
ROWS: Mapping[str, tuple[Network, tuple[Rule, ...]]] = {
    "lm-small": (
        LANGUAGE_MODEL,
        (
            *with_muon((BACKPROP, *_on_four(HEAD_INPUT, FROZEN, PCA), by_layers(HEAD_INPUT, 8))),
            *_on_four(
                HIDDEN,
                NORMALISED,
                changed(HEAD_INPUT, "learned on by Hebb", q_rule="hebbian"),
                changed(HEAD_INPUT, "learned on by probes", q_rule="probed"),
                of_rank(WIDTH // 4, "oja", "Oja's rule"),
                of_rank(WIDTH // 4, "fixed", "a fixed P"),
                of_rank(WIDTH // 12, "pca", "running PCA"),
                FIXED,
            ),
            by_layers(HIDDEN, 8),
        ),
    ),
    "vit8": (VIT, (BACKPROP, *_on_four(HEAD_INPUT, HIDDEN, READOUT, FROZEN))),
}
"""Networks with their rules."""
