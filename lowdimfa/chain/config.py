"""What a conversion is asked for, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lowdimfa.config import FactoryConfig
from lowdimfa.errors import InputError
from lowdimfa.rules import CHAIN_RULES

ChainQRule = Literal["hebbian", "fixed"]
ChainPRule = Literal["oja", "fixed"]
QStart = Literal["random", "transposed"]
ErrorDim = int | float


@dataclass(frozen=True)
class ChainConfig:
    """How the layers of a model pass their errors back.

    Attributes
    ----------
    error_dim
        ``r``: a whole number, or a fraction (a float above 0, at most 1) of a layer's outputs; for a grouped
        convolution, of each group's. More than a layer has is all it has. Of the built-in rules for ``low-dimensional``
        and ``direct`` alone (there of the model's outputs); the others have full matrices.
    rule
        What stands in for the transposed weights: a built-in name (`lowdimfa.rules`), the import path of a class
        derived from `lowdimfa.ChainRule`, or such a path with arguments.
    q_rule
        ``hebbian`` learns ``Q`` with the optimiser of the weights; ``fixed`` leaves it as drawn. Like `p_rule`,
        only for the rules that have an `error_dim`; the others say by their name whether they learn.
    p_rule
        ``oja`` turns ``P`` towards the error's principal directions in every backward pass in training mode.
    p_lr
        Rate of Oja's rule, for an error correlation scaled to trace 1.
    p_samples
        How many error vectors (samples, times tokens or pixels) Oja's rule sees of a layer in a backward pass; None
        for all. The output's error, under the rule ``direct``, is always seen whole.
    q_start
        ``random``, at the scale of the layer's weights, or ``transposed``: ``Q = Wᵀ Pᵀ`` (weights are carried over,
        once).
    error_dims
        Error dimensions of single layers by name, in place of `error_dim`.
    skip
        Names of layers, or of modules that hold them, that stay as they are.
    seed
        Of the random ``Q`` and ``P``; each layer's draw depends on its name too.
    """

    error_dim: ErrorDim = 64
    rule: str | FactoryConfig = "low-dimensional"
    q_rule: ChainQRule = "hebbian"
    p_rule: ChainPRule = "oja"
    p_lr: float = 0.1
    p_samples: int | None = 64
    q_start: QStart = "random"
    error_dims: Mapping[str, ErrorDim] = field(default_factory=dict)
    skip: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, Any]] = {
            "q_rule": (self.q_rule, ChainQRule),
            "p_rule": (self.p_rule, ChainPRule),
            "q_start": (self.q_start, QStart),
        }
        for name, (found, allowed) in choices.items():
            if found not in get_args(allowed):
                raise InputError(f"convert: {name}", repr(found), f"one of {', '.join(get_args(allowed))}")
        _check_error_dim("error_dim", self.error_dim)
        for name, error_dim in self.error_dims.items():
            _check_error_dim(f"error_dims[{name!r}]", error_dim)
        rule = CHAIN_RULES.find(self.rule)
        if self.error_dims and not rule.error_dim_of_layer:
            raise InputError(
                "convert: error_dims",
                f"dimensions of single layers under the rule {CHAIN_RULES.name_of(rule)!r}",
                "the rule 'low-dimensional'",
                "One broadcast error, or a full matrix, has no dimension for each layer.",
            )
        if not self.p_lr > 0:
            raise InputError("convert: p_lr", repr(self.p_lr), "a number above 0")
        if self.p_samples is not None and self.p_samples < 1:
            raise InputError("convert: p_samples", repr(self.p_samples), "a number from 1, or None for all")
        if isinstance(self.skip, str):
            raise InputError("convert: skip", f"the text {self.skip!r}", "a list of names")

    def error_dim_of(self, name: str, width: int) -> int:
        """Return ``r`` of a layer with so many outputs, between 1 and that number."""
        asked = self.error_dims.get(name, self.error_dim)
        return min(width, asked) if isinstance(asked, int) else max(1, round(asked * width))


def _check_error_dim(where: str, asked: object) -> None:
    is_count = isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1
    is_share = isinstance(asked, float) and 0 < asked <= 1
    if not (is_count or is_share):
        raise InputError(
            f"convert: {where}",
            repr(asked),
            "a whole number from 1, or a fraction of the layer's outputs (a float above 0, at most 1)",
        )
