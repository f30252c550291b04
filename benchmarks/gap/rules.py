"""The forms of feedback that are compared on networks in blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowdimfa.config import FeedbackConfig

BLOCKS = 4


@dataclass(frozen=True)
class Rule:
    """A form of feedback on a network that is cut into blocks."""

    label: str
    feedback: FeedbackConfig
    blocks: int = BLOCKS

    def configuration(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data."""
        return {"feedback": asdict(self.feedback), "blocks": self.blocks}


BACKPROP = Rule("backpropagation", FeedbackConfig(form="backprop"))
READOUT = Rule("broadcast, readout", FeedbackConfig(q_rule="readout"))
HEBBIAN = Rule("broadcast, hebbian", FeedbackConfig(q_rule="hebbian"))
PROBED = Rule("broadcast, probed", FeedbackConfig(q_rule="probed"))
FIXED = Rule("direct feedback alignment", FeedbackConfig(q_rule="fixed"))
LOCAL = Rule("greedy local loss", FeedbackConfig(form="local"))
