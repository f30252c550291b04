"""The ways back for errors that the claims compare, and the models that have them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lowdimfa.chain import ChainConfig, convert
from lowdimfa.chain.config import ChainQRule, Start

WITH_ERROR_DIM = ("low-dimensional", "direct")


@dataclass(frozen=True)
class Method:
    """How errors go back.

    Attributes
    ----------
    label
        For tables and figures.
    rule
        A rule of `lowdimfa.convert`; ``plain`` leaves the model as it is, to backpropagation; ``local`` gives every
        stage a linear readout and a loss of its own (`lowdimfa.baselines.LocalForm`).
    error_dim
        ``r``, where the rule has one; a float is a share of each layer's outputs.
    q_rule
        How ``Q`` learns, where the rule has an ``r``.
    error_dims
        ``r`` of single layers by name, in place of `error_dim`.
    start
        Where ``Q`` starts: ``transposed`` carries the initial weights over, once.
    """

    label: str
    rule: str = "plain"
    error_dim: int | float = 64
    q_rule: ChainQRule = "hebbian"
    error_dims: tuple[tuple[str, int], ...] = ()
    start: Start = "random"

    def configuration(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data."""
        found: dict[str, Any] = {"rule": self.rule}
        if self.rule in WITH_ERROR_DIM:
            found |= {
                "error_dim": self.error_dim,
                **({"error_dims": dict(self.error_dims)} if self.error_dims else {}),
                "q_rule": self.q_rule,
                "p_rule": ChainConfig.p_rule,
                "p_lr": ChainConfig.p_lr,
                "p_samples": ChainConfig.p_samples,
                "start": self.start,
            }
        return found

    def applied(self, model: nn.Sequential, example: Tensor, seed: int) -> nn.Sequential:
        """Return the model with this way back, changed in place."""
        if self.rule in ("plain", "local"):
            return model
        error_dim = self.error_dim if self.rule in WITH_ERROR_DIM else ChainConfig.error_dim
        return convert(
            model,
            error_dim,
            rule=self.rule,
            q_rule=self.q_rule,
            error_dims=dict(self.error_dims),
            start=self.start,
            seed=seed,
            example=example if self.rule == "direct" else None,
        )


BACKPROP = Method("backpropagation")
FEEDBACK_ALIGNMENT = Method("feedback alignment", "feedback-alignment")
KOLEN_POLLACK = Method("Kolen-Pollack, full", "kolen-pollack")
SIGN_SYMMETRY = Method("sign symmetry", "sign-symmetry")
LOCAL = Method("greedy local loss", "local")


def chain(error_dim: int | float) -> Method:
    """Return the paper's chain form."""
    return Method(f"chain form, r = {error_dim:g}", "low-dimensional", error_dim)


def chain_share(share: float, text: str, output: str, outputs: int) -> Method:
    """Return the chain form with a share of each layer's outputs for its ``r``; the output layer keeps all of its own."""
    label = f"chain form, r = {text} of the channels"
    return Method(label, "low-dimensional", share, error_dims=((output, outputs),))


def from_weights(method: Method) -> Method:
    """Return the chain form with ``Q`` that starts aligned, so that only its rank is in the way."""
    return replace(method, label=f"{method.label}, Q from Wᵀ", start="transposed")


def direct(error_dim: int) -> Method:
    """Return the direct form: every layer gets the projected output error."""
    return Method(f"direct form, r = {error_dim}", "direct", error_dim)


def direct_feedback_alignment(outputs: int) -> Method:
    """Return the direct form with fixed feedback from all of the output."""
    return Method("direct feedback alignment", "direct", outputs, "fixed")
