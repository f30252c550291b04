"""What a block needs to know to run its layers."""

from __future__ import annotations

from dataclasses import dataclass

from lowdimfa.config import FeedbackConfig, Precision, TrainingConfig
from lowdimfa.formats import Format
from lowdimfa.sending import format_between


@dataclass(frozen=True)
class StageConfig:
    """How a block runs its layers.

    Attributes
    ----------
    seed
        The run's seed.
    precision
        ``fp32``, or ``bf16`` for autocast.
    form
        Format in which activations travel between blocks; None for their own. Layers don't compute in it.
    staleness
        Above 0, weights may change between a forward and its update, so those that the forward used are kept.
    compiled
        Whether ``torch.compile`` makes the layers' training pass.
    probe_noise
        Standard deviation of a probe's noise at a site, relative to that of the output there.
    """

    seed: int
    precision: Precision = "fp32"
    form: Format | None = None
    staleness: int = 0
    compiled: bool = False
    probe_noise: float = 0.05

    @classmethod
    def of(cls, training: TrainingConfig, feedback: FeedbackConfig) -> StageConfig:
        """Return what the settings of a network make of it."""
        same = {name: getattr(training, name) for name in ("seed", "precision", "staleness")}
        form = format_between(training, feedback)
        return cls(**same, form=form, compiled=training.compile, probe_noise=feedback.probe_noise)
