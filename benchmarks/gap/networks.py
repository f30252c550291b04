"""The networks on which the rules for blocks are compared, with their data, schedules and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.claims.settings import Setting, Update
from lowdimfa.data import SHAKESPEARE_VOCABULARY, Dataset, shakespeare, tokens
from lowdimfa.data.preparing import Recipe, prepare
from lowdimfa.head import Evaluation
from lowdimfa.models import char_transformer, cnn, mlp, vit

GRID = tuple(Update(rate) for rate in (1e-3, 2e-3, 4e-3))
SHORT = (*GRID, Update(8e-3))
"""For short runs, in which backpropagation often does best at a high rate."""
BEYOND = 2
"""How many times a rate is doubled, or halved, beyond the grid while the best one is the last there."""
ACCURACY, BITS, PERPLEXITY = "accuracy (%)", "bits per character", "perplexity"
CONTEXT, CHARACTERS = 64, 2_900_000
TEXT = f"the first {CHARACTERS:,} characters of Shakespeare, in windows of {CONTEXT}"


@dataclass(frozen=True)
class Tokens:
    """Shakespeare in tokens of a vocabulary that is trained on it, in windows."""

    vocabulary: int
    context: int

    @property
    def label(self) -> str:
        """Its name among the data."""
        return f"Shakespeare in tokens of a vocabulary of {self.vocabulary:,} trained on it, in windows of {self.context}"

    def folder(self) -> Path:
        """Return the folder of the tokens and their tokenizer, which are made at the first use."""
        folder = Path("runs/data") / f"shakespeare-{self.vocabulary}"
        prepare(Recipe(["shakespeare"], vocabulary=self.vocabulary), folder)
        return folder


@cache
def windows(tokenised: Tokens) -> Dataset:
    """Return the tokens."""
    return tokens(str(tokenised.folder()), tokenised.context)


TOKENS, SMALL_TOKENS = Tokens(8_192, CONTEXT), Tokens(4_096, 48)


@dataclass(frozen=True)
class Network(Setting):
    """A network that is trained in blocks.

    Attributes
    ----------
    target
        Largest gap to backpropagation that counts as closed: in points, or for text as a share of its bits or perplexity.
    score
        `ACCURACY`, `BITS` or `PERPLEXITY`.
    """

    grid: tuple[Update, ...] = GRID
    target: float = math.inf
    score: str = ACCURACY

    @property
    def sign(self) -> int:
        """1 where a higher score is better, -1 where a lower one is."""
        return 1 if self.score == ACCURACY else -1

    @property
    def worst(self) -> float:
        """The score of a run that has diverged: finite, as JSON has no other numbers."""
        return 0.0 if self.score == ACCURACY else 1e9

    def beyond(self, best: Update, tried: Sequence[Update]) -> Update | None:
        """Return what to try after the best of what was tried: half or twice its rate, if it is the last one there.

        None if it isn't, or is as far from the grid as this goes.
        """
        rates, given = ([one.rate for one in some] for some in (tried, self.grid))
        if best.rate == max(rates) < given[-1] * 2**BEYOND and len(given) > 1:
            return replace(best, rate=2 * best.rate)
        if best.rate == min(rates) > given[0] / 2**BEYOND and len(given) > 1:
            return replace(best, rate=best.rate / 2)
        return None

    def network(self) -> nn.Sequential:
        """Return the network, drawn from torch's global generator; images keep their channels last, which is faster."""
        model = super().network()
        return model.to(memory_format=torch.channels_last) if self.model is cnn else model

    def dataset(self) -> Dataset:
        """Return the data, all training samples included."""
        own = {TEXT: text} | {one.label: partial(windows, one) for one in (TOKENS, SMALL_TOKENS)}
        return own[self.data]() if self.data in own else super().dataset()

    def score_of(self, evaluation: Evaluation) -> float:
        """Return the score of an evaluation."""
        if self.score == PERPLEXITY:
            return math.exp(evaluation.loss)
        return evaluation.loss / math.log(2) if self.score == BITS else 100 * (evaluation.accuracy or 0.0)

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        found = super().configuration()
        del found["classes"]
        return found | {
            "memory_format": "channels last" if self.model is cnn else "contiguous",
            "microbatches": 1,
            "grid beyond": f"by factors of 2 while the best rate is the last one, at most {BEYOND}",
            "optimizer": "AdamW, fused, for W and Q, unless the method says otherwise",
            "score": self.score,
        }


@cache
def text() -> Dataset:
    """Return the text, in windows."""
    return shakespeare(CONTEXT, limit_chars=CHARACTERS)


NETWORKS = {
    "mlp": Network(
        "MLP 4×512, Fashion-MNIST, full data",
        mlp,
        (784, 512, 5, 10),
        "Fashion-MNIST",
        samples=50_000,
        epochs=4,
        grid=SHORT,
        target=0.3,
    ),
    "cnn": Network(
        "CNN, Fashion-MNIST, full data",
        cnn,
        (1, (16, 32, 64), 10, 28),
        "Fashion-MNIST",
        samples=50_000,
        epochs=2,
        grid=SHORT,
        target=0.3,
    ),
    "cifar": Network(
        "CNN (two convolutions per block), CIFAR-10",
        cnn,
        (3, (16, 32, 64), 10, 32, 2),
        "CIFAR-10",
        samples=10_000,
        epochs=4,
        grid=SHORT,
        target=1.0,
    ),
    "vit": Network(
        "vision transformer, Fashion-MNIST",
        vit,
        (28, 7, 1, 64, 4, 4, 10),
        "Fashion-MNIST",
        samples=10_000,
        epochs=5,
        grid=SHORT,
        target=0.5,
    ),
    "char": Network(
        "character transformer, Shakespeare",
        char_transformer,
        (len(SHAKESPEARE_VOCABULARY), CONTEXT, 64, 4, 4),
        TEXT,
        samples=12_800,
        epochs=1,
        grid=SHORT,
        target=0.03,
        batch_size=64,
        score=BITS,
    ),
}
