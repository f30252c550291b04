"""What a head makes of a micro-batch, and of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from lowdimfa.config import Source
from lowdimfa.losses import Objective, precise
from lowdimfa.metrics import Measured


@dataclass(frozen=True)
class Broadcast:
    """What the head's forward returns.

    Attributes
    ----------
    error
        ``c = P e``, shape ``(batch, *positions, error_dim)``, float32: what every block needs to learn. Where the error
        doesn't show its class, that one's number is behind it (`lowdimfa.feedback.readout.with_classes`).
    response
        On a probe, ``P Δy``: the projected change of the tensor whose error it is, of the same shape.
    loss
        Mean over the micro-batch, times its weight: the mean of these over a step is the mean over its batch. A scalar
        on the head's device.
    correct
        Right predictions, a scalar on the head's device; 0 where there is no accuracy.
    counted
        Predictions that count, another such scalar.
    projection
        ``P``, shape ``(error_dim, width)``, where it has changed since the last step and blocks follow it.
    """

    error: Tensor
    response: Tensor | None
    loss: Tensor
    correct: Tensor
    counted: Tensor
    projection: Tensor | None = None


class Sends(NamedTuple):
    """What a head broadcasts.

    Attributes
    ----------
    source
        The tensor whose error it is.
    classes
        Whether the number of its class goes with every error.
    projection
        Whether ``P`` does, once it has changed.
    coarse
        Whether the error is rounded to bfloat16, in which it then travels.
    """

    source: Source = "logits"
    classes: bool = False
    projection: bool = False
    coarse: bool = False


@dataclass
class Evaluation:
    """Sums over an evaluation; ``ignored`` is the part of the samples, by their positions, that does not count.

    ``metrics`` is there once all batches are: what the run's metrics come to.
    """

    loss_sum: float = 0.0
    samples: int = 0
    correct: int = 0
    counted: int = 0
    ignored: float = 0.0
    metrics: Measured = field(default_factory=dict)

    def add(self, outputs: Tensor, targets: Tensor, objective: Objective, samples: float) -> None:
        """Take in loss and score of some outputs, which are so many samples' worth."""
        outputs = precise(outputs)
        share = objective.count(targets) / targets.numel()
        if share:
            with objective.evaluating():
                self.loss_sum += float(objective.loss(outputs, targets)) * samples * share
        correct, counted = objective.score(outputs, targets)
        self.correct += int(correct)
        self.counted += int(counted)

    @property
    def loss(self) -> float:
        """Mean loss over the samples, or over what counts of them."""
        return self.loss_sum / (self.samples - self.ignored or 1)

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, or None where there is no accuracy."""
        return self.correct / self.counted if self.counted else None
