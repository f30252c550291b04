"""Oja's subspace rule for ``P``: towards the principal directions of errors, or of the targets that they tell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdimfa.chain.config import ChainConfig
from lowdimfa.errors import InputError

Drive = Literal["errors", "targets"]
LONGEST = 0.5
"""Largest rate of a step that is stable for any errors, where these are scaled to trace 1."""


class Oja:
    """Oja's rule with the settings of a conversion.

    Parameters
    ----------
    config
        Its rate, and whether errors are normalised.
    drive
        What it sees: ``errors``, or the one-hot ``targets`` that these tell.
    """

    def __init__(self, config: ChainConfig, drive: Drive = "errors") -> None:
        self._rate = config.p_lr
        self._is_normalised = config.p_rule == "normalised-oja"
        self._drive = drive

    def turn(self, projection: Tensor, errors: Tensor, projected: Tensor) -> None:
        """Turn ``P`` by one step, in place.

        Parameters
        ----------
        projection
            ``P``, shape ``(*groups, r, width)``.
        errors
            ``E``, shape ``(*groups, vectors, width)``.
        projected
            ``E Pᵀ``, shape ``(*groups, vectors, r)``.
        """
        if self._drive == "errors" and not self._is_normalised:
            turn_towards(projection, errors, projected, self._rate)
            return
        seen = errors if self._drive == "errors" else targets_of(errors)
        rate: float | Tensor = self._rate
        if self._is_normalised:
            seen = normalised(seen)
            # The covariance of a wide layer turns P so far that it never comes back: no step is longer than one towards
            # a covariance of trace 1.
            rate = (rate * seen.square().sum((-2, -1), keepdim=True) / seen.shape[-2]).clamp(max=LONGEST)
        turn_towards(projection, seen, seen @ projection.mT.to(seen.dtype), rate)


def normalised(errors: Tensor) -> Tensor:
    """Return errors that are centred and divided by the largest standard deviation among their numbers.

    Taken over vectors, within each group. Errors that are all alike become zero.
    """
    single = errors.to(torch.promote_types(errors.dtype, torch.float32))
    centred = single - single.mean(-2, keepdim=True)
    largest = centred.square().mean(-2, keepdim=True).amax(-1, keepdim=True).sqrt()
    return torch.where(largest > 0, centred / largest, 0.0)


def targets_of(errors: Tensor) -> Tensor:
    """Return the one-hot targets of the errors of cross-entropy: the class that was there has a negative error.

    A sample whose error is zero has none.

    Raises
    ------
    InputError
        A sample has several negative errors, so that these aren't of cross-entropy with one class for each sample.
    """
    targets = (errors < 0).to(errors.dtype)
    if not errors.is_meta and bool((targets.sum(-1) > 1).any()):
        raise InputError(
            "convert: p_targets",
            "a layer whose errors don't tell one class for each sample",
            "the output layer, trained by cross-entropy with one class for each sample",
        )
    return targets


@torch.no_grad()
def turn_towards(projection: Tensor, errors: Tensor, seen: Tensor, rate: float | Tensor) -> None:
    """Turn the rows of ``P`` towards the errors' principal directions, in place, by one step of Oja's subspace rule.

    ``ΔP = η P C (I − PᵀP)`` with ``C = EᵀE / trace`` of the errors ``E``, written so that nothing is as large as
    ``C``: ``(E Pᵀ)ᵀ (E − E PᵀP)``. Errors that are zero, or so small or large that a product of theirs isn't a number of
    full precision, change nothing: what isn't finite would stay in ``P`` for good.

    Parameters
    ----------
    projection
        ``P``, shape ``(*groups, r, width)``.
    errors
        ``E``, shape ``(*groups, vectors, width)``.
    seen
        ``E Pᵀ``, shape ``(*groups, vectors, r)``.
    rate
        ``η``; one for each group, of shape ``(*groups, 1, 1)``, or one for all.
    """
    at_least_single = torch.promote_types(errors.dtype, torch.float32)
    trace = torch.linalg.vector_norm(errors, dim=(-2, -1), keepdim=True, dtype=at_least_single).square()
    usable = torch.isfinite(trace) & (trace >= torch.finfo(at_least_single).tiny)
    # The thin factors are scaled and blanked, not their product, which may be many times as large.
    share = torch.where(usable, seen * (rate / trace), 0.0).to(errors.dtype)
    missed = torch.where(usable, errors - seen @ projection.to(errors.dtype), 0.0)
    change = share.mT @ missed
    # In half precision E Pᵀ and the scaled factors have a smaller range than the trace.
    if errors.dtype is not at_least_single:
        change = torch.where(change.isfinite().flatten(-2).all(-1)[..., None, None], change, 0.0)
    projection += change.to(projection.dtype)
