"""The forms of feedback that are compared on networks in blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lowdimfa.config import Activations, FeedbackConfig, RankConfig

BLOCKS = 4


@dataclass(frozen=True)
class Rule:
    """A form of feedback on a network that is cut into blocks, by AdamW, or by Muon for the matrices of hidden layers.

    Attributes
    ----------
    blocks
        How many, or at which layers the later ones begin.
    target
        Largest gap to backpropagation that is aimed at: in points, or for text as a share. It decides no figure.
    activations
        Format in which these travel.
    """

    label: str
    feedback: FeedbackConfig
    blocks: int | tuple[str, ...] = BLOCKS
    muon: bool = False
    target: float | None = None
    activations: Activations | RankConfig = "fp32"

    def configuration(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data."""
        optimizer = {"optimizer": "Muon for hidden matrices, AdamW for the rest and Q"} if self.muon else {}
        given = asdict(self.activations) if isinstance(self.activations, RankConfig) else self.activations
        packed = {} if given == "fp32" else {"activations": given}
        feedback = asdict(self.feedback)
        if self.feedback.broadcast == "fp32":  # as runs have it that were made when there was no other
            del feedback["broadcast"]
        # Of fewer numbers of a hidden state each rule says its own.
        feedback["p_rule"] = self.feedback.p_rule_or_fixed
        return {"feedback": feedback, "blocks": self.blocks, **optimizer, **packed}


def label_of(rule: Rule) -> str:
    """Return a rule's label."""
    return rule.label


def changed(rule: Rule, label: str, **feedback: object) -> Rule:
    """Return a rule with other settings of its feedback, and what they are after its name."""
    return replace(rule, label=f"{rule.label}, {label}", feedback=replace(rule.feedback, **feedback))


def by_muon(rule: Rule) -> Rule:
    """Return a rule with Muon."""
    return replace(rule, label=f"{rule.label}, Muon", muon=True)


BACKPROP = Rule("backpropagation", FeedbackConfig(form="backprop"))
READOUT = Rule("broadcast, readout", FeedbackConfig(q_rule="readout"))
HEBBIAN = Rule("broadcast, hebbian", FeedbackConfig(q_rule="hebbian"))
PROBED = Rule("broadcast, probed", FeedbackConfig(q_rule="probed"))
FIXED = Rule("direct feedback alignment", FeedbackConfig(q_rule="fixed"))
LOCAL = Rule("greedy local loss", FeedbackConfig(form="local"))
FROZEN = Rule("blocks before the head frozen", FeedbackConfig(form="frozen"))
