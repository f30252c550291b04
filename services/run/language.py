"""What says how well a language model does: perplexity, bits per byte, tokens per second. Computed here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdimfa.data.base import bytes_per_target
from lowdimfa.losses import shows_targets

if TYPE_CHECKING:
    from lowdimfa.head import Evaluation
    from lowdimfa.services.run.plan import RunPlan


@dataclass(frozen=True)
class Language:
    """Makes these numbers of losses. Where a run trains no language model, all of them are None.

    Attributes
    ----------
    applies
        Whether the loss is the softmax cross-entropy of tokens, in nats.
    train_bytes, test_bytes
        Bytes of text for each target of a split, where the data tells: see `lowdimfa.data.base.bytes_per_target`.
    """

    applies: bool = False
    train_bytes: float | None = None
    test_bytes: float | None = None

    @classmethod
    def of(cls, plan: RunPlan) -> Language:
        """Return what makes the numbers of a run.

        Raises
        ------
        InputError
            The data tells something else than a number of bytes.
        """
        data, loss = plan.dataset, plan.network.training.loss
        sizes = [bytes_per_target(split) for split in (data.train, data.test)]
        return cls(data.task == "tokens" and shows_targets(loss, data.task), *sizes)

    @property
    def numbers(self) -> list[str]:
        """Names of those of which an evaluation has one."""
        there = {"test_perplexity": self.applies, "test_bits_per_byte": self.applies and self.test_bytes}
        return [name for name, has in there.items() if has]

    def trained(self, loss: float, tokens: int, tokens_per_second: float) -> dict[str, Any]:
        """Return the numbers of a ``progress`` event, of a mean loss over so many tokens."""
        if not self.applies or not tokens:
            return dict.fromkeys(("perplexity", "bits_per_byte", "tokens_per_second"))
        return {
            "perplexity": perplexity(loss),
            "bits_per_byte": _bits_per_byte(loss, self.train_bytes),
            "tokens_per_second": tokens_per_second,
        }

    def evaluated(self, result: Evaluation) -> dict[str, Any]:
        """Return the numbers of an ``evaluated`` event, over all tokens of the evaluation that count."""
        if not self.applies or not result.counted:
            return dict.fromkeys(("test_perplexity", "test_bits_per_byte", "test_tokens"))
        return {
            "test_perplexity": perplexity(result.loss),
            "test_bits_per_byte": _bits_per_byte(result.loss, self.test_bytes),
            "test_tokens": result.counted,
        }


def perplexity(loss: float) -> float:
    """Return the exponential of a mean loss per token, in nats; infinity where no number is large enough."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _bits_per_byte(loss: float, size: float | None) -> float | None:
    return None if size is None else loss / math.log(2) / size
