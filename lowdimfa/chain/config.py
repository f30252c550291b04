"""What a conversion is asked for, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, Literal, TypedDict, TypeGuard, get_args

from lowdimfa.config import FactoryConfig
from lowdimfa.errors import InputError
from lowdimfa.rules import CHAIN_RULES

ChainQRule = Literal["hebbian", "fixed"]
ChainPRule = Literal["oja", "normalised-oja", "fixed"]
Start = Literal["random", "transposed", "svd"]
ErrorDim = int | float
Clamp = float | Sequence[float]


class ChainSettings(TypedDict, total=False):
    """The keywords of `lowdimfa.convert`: those of `ChainConfig`, which says what they mean and their defaults."""

    rule: str | FactoryConfig
    q_rule: ChainQRule
    p_rule: ChainPRule
    p_lr: float
    p_samples: int | None
    p_targets: Sequence[str]
    start: Start | None
    refresh_every: int | float | None
    batches_per_epoch: int | None
    fit_every: int
    clamp: Clamp | None
    error_dims: Mapping[str, ErrorDim]
    joint: Sequence[str]
    skip: Sequence[str]
    seed: int


@dataclass(frozen=True)
class ChainConfig:
    """How the layers of a model pass their errors back.

    Settings that a built-in rule for ``Q`` and ``P`` has no use for are refused.

    Attributes
    ----------
    error_dim
        ``r``: a whole number, or a fraction (a float above 0, at most 1) of a layer's outputs; for a grouped
        convolution, of each group's. More than a layer has is all it has, as are more than its inputs where ``P`` and
        ``Q`` are factors of the weights. Of the built-in rules for those of rank ``r`` and ``direct`` alone (there of
        the model's outputs); the others have full matrices.
    rule
        What stands in for the transposed weights: a built-in name (`lowdimfa.rules`), the import path of a class
        derived from `lowdimfa.ChainRule`, or such a path with arguments.
    q_rule
        ``hebbian`` learns ``Q`` with the optimiser of the weights; ``fixed`` leaves it as drawn. Like `p_rule`,
        only for the rules ``low-dimensional`` and ``direct``; the others say by their name whether they learn.
    p_rule
        ``oja`` turns ``P`` towards the error's principal directions in every backward pass in training mode;
        ``normalised-oja`` those of errors that are centred and divided by their largest standard deviation.
    p_lr
        Rate of Oja's rule, for an error correlation scaled to trace 1; normalised, for the covariance, but no further
        than is stable.
    p_samples
        How many error vectors (samples, times tokens or pixels) Oja's rule sees of a layer in a backward pass; None
        for all. The output's error, under the rule ``direct``, is always seen whole.
    p_targets
        Names of layers whose ``P`` sees, in place of errors, the one-hot targets that these tell (a class that was
        present has a negative error): for the output layer under cross-entropy.
    start
        Of ``P`` and ``Q``: ``random``, ``Q`` at the scale of the layer's weights; ``transposed``, ``P`` random and
        ``Q = (P W)ᵀ``; ``svd``, so that ``(Q P)ᵀ`` is the best approximation of ``W`` of rank ``r``. The latter
        two read weights, once. None is the rule's own.
    refresh_every
        Backward passes in training mode after which ``P`` and ``Q`` start again from the SVD of the weights as
        they are then, a whole number; or epochs, a float such as 0.5 for twice in each, rounded to whole passes with
        `batches_per_epoch`. None for never. For the rules ``normative`` and ``local``.
    batches_per_epoch
        Backward passes of an epoch, ``len(loader)``, where `refresh_every` is a number of epochs.
    fit_every
        The rule ``normative`` learns in every so many backward passes, in any mode.
    clamp
        Largest absolute value of an element in the gradients of ``P`` and ``Q``: one number, or one for linear layers
        and one for convolutions (the authors' are 1 for the Hebbian rule, 10 and 0.1 for ``normative`` and ``local``).
    error_dims
        Error dimensions of single layers by name, in place of `error_dim`.
    joint
        Last parts of the names of layers that project query, key and value in one: they get ``3 r``.
    skip
        Names of layers, or of modules that hold them, that stay as they are: exact.
    seed
        Of the random ``Q`` and ``P``; each layer's draw depends on its name too.
    """

    error_dim: ErrorDim = 64
    rule: str | FactoryConfig = "low-dimensional"
    q_rule: ChainQRule = "hebbian"
    p_rule: ChainPRule = "oja"
    p_lr: float = 0.1
    p_samples: int | None = 64
    p_targets: Sequence[str] = ()
    start: Start | None = None
    refresh_every: int | float | None = None
    batches_per_epoch: int | None = None
    fit_every: int = 1
    clamp: Clamp | None = None
    error_dims: Mapping[str, ErrorDim] = field(default_factory=dict)
    joint: Sequence[str] = ()
    skip: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("q_rule", self.q_rule, get_args(ChainQRule))
        _check_choice("p_rule", self.p_rule, get_args(ChainPRule))
        if self.start is not None:
            _check_choice("start", self.start, get_args(Start))
        _check_error_dim("error_dim", self.error_dim)
        if not isinstance(self.error_dims, Mapping):
            raise InputError("convert: error_dims", repr(self.error_dims), "a mapping from names of layers")
        _check_names("error_dims", self.error_dims)
        for name, error_dim in self.error_dims.items():
            _check_error_dim(f"error_dims[{name!r}]", error_dim)
        if not _is_number(self.p_lr) or not 0 < self.p_lr < math.inf:
            raise InputError("convert: p_lr", repr(self.p_lr), "a number above 0")
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise InputError("convert: seed", repr(self.seed), "a whole number")
        for count in ("p_samples", "batches_per_epoch", "fit_every"):
            _check_count(count, getattr(self, count))
        _check_refresh(self.refresh_every, self.batches_per_epoch)
        _check_clamp(self.clamp)
        for names in ("skip", "joint", "p_targets"):
            _check_names(names, getattr(self, names))
        if self.p_targets and self.p_rule == "fixed":
            raise InputError("convert: p_targets", repr(self.p_targets), "none where P is fixed")
        self._check_rule()

    def error_dim_of(self, name: str, width: int) -> int:
        """Return ``r`` of a layer with so many outputs, between 1 and that number."""
        asked = self.error_dims.get(name, self.error_dim)
        if not isinstance(asked, int):
            return max(1, round(asked * width))
        is_joint = name not in self.error_dims and name.rpartition(".")[2] in self.joint
        return min(width, 3 * asked if is_joint else asked)

    @property
    def refresh_passes(self) -> int | None:
        """`refresh_every` in backward passes."""
        if not isinstance(self.refresh_every, float):
            return self.refresh_every
        assert self.batches_per_epoch is not None, "checked when the configuration was made"
        return max(1, round(self.refresh_every * self.batches_per_epoch))

    def _check_rule(self) -> None:
        """Refuse what the rule would leave unused in silence."""
        rule = CHAIN_RULES.find(self.rule)
        if self.error_dims and not rule.error_dim_of_layer:
            raise InputError(
                "convert: error_dims",
                f"dimensions of single layers under the rule {CHAIN_RULES.name_of(rule)!r}",
                "a rule with an r for each layer, such as 'low-dimensional'",
                "One broadcast error, or a full matrix, has no dimension for each layer.",
            )
        if self.start is not None and self.start not in rule.starts:
            expected = f"{' or '.join(map(repr, rule.starts))} under the rule {CHAIN_RULES.name_of(rule)!r}"
            raise InputError("convert: start", repr(self.start), expected)
        defaults = {one.name: one.default for one in fields(self)}
        for name in rule.unused:
            if getattr(self, name) != defaults[name]:
                raise InputError(
                    f"convert: {name}",
                    repr(getattr(self, name)),
                    f"the default, {defaults[name]!r}, under the rule {CHAIN_RULES.name_of(rule)!r}, which has no "
                    "use for it",
                )


def _check_choice(name: str, found: object, allowed: tuple[Any, ...]) -> None:
    if found not in allowed:
        raise InputError(f"convert: {name}", repr(found), f"one of {', '.join(allowed)}")


def _check_count(name: str, found: object) -> None:
    is_count = isinstance(found, int) and not isinstance(found, bool) and found >= 1
    if not is_count and (found is not None or name == "fit_every"):
        meaning = {"p_samples": ", or None for all"}.get(name, "")
        raise InputError(f"convert: {name}", repr(found), f"a number from 1{meaning}")


def _check_refresh(every: object, batches: int | None) -> None:
    if isinstance(every, float):
        if not 0 < every < math.inf:
            raise InputError("convert: refresh_every", repr(every), "a number of epochs above 0")
        if batches is None:
            raise InputError(
                "convert: refresh_every",
                f"{every!r} epochs, and no length of an epoch",
                "a whole number of backward passes, or batches_per_epoch beside it",
                "Give batches_per_epoch=len(loader).",
            )
        return
    is_count = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not is_count and every is not None:
        expected = "a whole number of backward passes from 1, a number of epochs (a float), or None for never"
        raise InputError("convert: refresh_every", repr(every), expected)
    if batches is not None:
        expected = "none, as refresh_every isn't a number of epochs, such as 0.5"
        raise InputError("convert: batches_per_epoch", repr(batches), expected)


def _check_names(setting: str, found: object) -> None:
    is_text = isinstance(found, str)
    if is_text or not isinstance(found, Collection) or not all(isinstance(one, str) for one in found):
        kind = "the text " if is_text else ""
        raise InputError(f"convert: {setting}", f"{kind}{found!r}", "a list of names")


def _check_clamp(found: object) -> None:
    bounds = found if isinstance(found, tuple | list) and len(found) == 2 else (found,)
    if found is not None and not all(_is_number(one) and 0 < one < math.inf for one in bounds):
        expected = "a number above 0, or two of them: for linear layers, for convolutions"
        raise InputError("convert: clamp", repr(found), expected)


def _is_number(found: object) -> TypeGuard[float]:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _check_error_dim(where: str, asked: object) -> None:
    is_count = isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1
    is_share = isinstance(asked, float) and 0 < asked <= 1
    if not (is_count or is_share):
        raise InputError(
            f"convert: {where}",
            repr(asked),
            "a whole number from 1, or a fraction of the layer's outputs (a float above 0, at most 1)",
        )
