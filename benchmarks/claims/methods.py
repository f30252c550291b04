"""The ways back for errors that the claims compare, and the models that have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowdimfa.chain import ChainConfig, convert
from lowdimfa.chain.config import ChainQRule, Start

WITH_ERROR_DIM = ("low-dimensional", "direct", "normative", "local")
READS_WEIGHTS = {
    "plain": "at every step",
    "backprop": "at every step",
    "normative": "at every step",
    "sign-symmetry": "their signs, at every step",
    "local": "at the start",
    "follow": "at the start, then its steps",
    "low-dimensional": "never",
    "kolen-pollack": "never",
    "feedback-alignment": "never",
    "direct": "never",
    "local loss": "never",
}
"""When a rule's feedback reads the weights of other layers, with its own start and no refreshes but ``normative``'s."""
FACTORED = ("normative", "local")
"""The second generation, whose ``Q`` and ``P`` are factors of the weights."""


@dataclass(frozen=True)
class Method:
    """How errors go back.

    Attributes
    ----------
    label
        For tables and figures.
    rule
        A rule of `lowdimfa.convert`; ``plain`` leaves the model as it is, to backpropagation; ``local loss`` gives every
        stage a linear readout and a loss of its own (`lowdimfa.baselines.LocalForm`).
    error_dim
        ``r``, where the rule has one; a float is a share of each layer's outputs.
    q_rule
        How ``Q`` learns, where the rule has an ``r``.
    error_dims
        ``r`` of single layers by name, in place of `error_dim`.
    start
        Of ``P`` and ``Q``; None is the rule's own.
    refresh_every
        Steps after which both start again from the weights.
    skip
        Names of layers that stay exact.
    joint
        Last parts of the names of joint projections, which get three times `error_dim`.
    """

    label: str
    rule: str = "plain"
    error_dim: int | float = 64
    q_rule: ChainQRule = "hebbian"
    error_dims: tuple[tuple[str, int], ...] = ()
    start: Start | None = None
    refresh_every: int | None = None
    skip: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()

    @property
    def is_factored(self) -> bool:
        """Whether ``Q`` and ``P`` learn as the second generation has it."""
        return self.rule in FACTORED

    def settings(self) -> dict[str, Any]:
        """Return the settings of the conversion beside rule and ``r``, as far as the rule has a use for them."""
        found: dict[str, Any] = {"error_dims": dict(self.error_dims), "skip": list(self.skip)}
        found |= {"joint": list(self.joint)} if self.joint else {}
        if not self.is_factored:
            found |= {"q_rule": self.q_rule}
        if self.refresh_every is not None:
            found["refresh_every"] = self.refresh_every
        return {**found, "start": self.start}

    def configuration(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data."""
        found: dict[str, Any] = {"rule": self.rule}
        if self.skip and self.rule not in WITH_ERROR_DIM:
            found |= {"skip": list(self.skip)}
        if self.rule in WITH_ERROR_DIM:
            found |= {"error_dim": self.error_dim}
            found |= {name: value for name, value in self.settings().items() if value}
            if not self.is_factored:
                found |= {
                    "p_rule": ChainConfig.p_rule,
                    "p_lr": ChainConfig.p_lr,
                    "p_samples": ChainConfig.p_samples,
                }
        return found

    def applied(self, model: nn.Sequential, example: Tensor, seed: int) -> nn.Sequential:
        """Return the model with this way back, changed in place."""
        if self.rule in ("plain", "local loss"):
            return model
        settings: Any = self.settings()
        error_dim = self.error_dim if self.rule in WITH_ERROR_DIM else ChainConfig.error_dim
        wanted = example if self.rule == "direct" else None
        return convert(model, error_dim, rule=self.rule, seed=seed, example=wanted, **settings)


BACKPROP = Method("backpropagation")
FEEDBACK_ALIGNMENT = Method("feedback alignment", "feedback-alignment")
KOLEN_POLLACK = Method("Kolen-Pollack, full", "kolen-pollack")
SIGN_SYMMETRY = Method("sign symmetry", "sign-symmetry")
LOCAL = Method("greedy local loss", "local loss")


def direct(error_dim: int) -> Method:
    """Return the direct form: every layer gets the projected output error."""
    return Method(f"direct form, r = {error_dim}", "direct", error_dim)


def direct_feedback_alignment(outputs: int) -> Method:
    """Return the direct form with fixed feedback from all of the output."""
    return Method("direct feedback alignment", "direct", outputs, "fixed")


GENERATIONS = {"low-dimensional": "first generation", "normative": "normative (reads W)", "local": "local"}
"""Rules of the paper's two generations, by what they are called in tables."""


def generation(
    rule: str, error_dim: int | float, steps_per_epoch: int, where: str = "", **settings: Any
) -> Method:
    """Return a rule of the paper's generations; ``normative`` is refreshed twice an epoch, as its authors do.

    Gradients of feedback aren't clamped here, and Oja's rule of the first generation sees errors of trace 1: there the
    authors do otherwise.
    """
    refresh = max(1, steps_per_epoch // 2) if rule == "normative" else None
    return Method(
        generation_label(rule, error_dim, where), rule, error_dim, refresh_every=refresh, **settings
    )


def generation_label(rule: str, error_dim: int | float, where: str = "") -> str:
    """Return the label of a rule at an ``r``."""
    return f"{GENERATIONS[rule]}, r = {error_dim:g}{where}"
