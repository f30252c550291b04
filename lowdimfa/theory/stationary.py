"""Where learning stops: stationary points in closed form (derived in `docs/theory.md`, beyond the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.theory.system import LinearFeedback, LinearState, LinearTask


@dataclass(frozen=True)
class StationaryPoint:
    """The map that the student ends in.

    Attributes
    ----------
    student
        ``W₂ W₁``, shape ``(*batch, m, n)``.
    modes
        ``aᵢ``, shape ``(*batch, d)``.
    loss
        Shape ``(*batch)``; the optimum is 0 where there are at least ``d`` hidden units.
    rank
        Modes of the projected task that survive, shape ``(*batch)``: the rank of the student's map.
    """

    student: Tensor
    modes: Tensor
    loss: Tensor
    rank: Tensor


def fixed_points(task: LinearTask, feedback: LinearFeedback, state: LinearState) -> StationaryPoint:
    """Return the stable stationary point that learning from a state approaches.

    At every stationary point with ``λ > 0``, ``λ W₁ = Q P E``: the student's rank is at most ``r``, whatever ``Q`` and
    ``P`` are. Readout and error then follow from ``W₁``: ``W₂ = Σ W₁ᵀ (W₁ W₁ᵀ + λ)⁻¹``. In detail:

    - ``q``: ``Q`` has become ``(P W₂)ᵀ``, and the student is ``Σ Ṽ diag((1 − λ/σᵢ)₊) Ṽᵀ`` with singular values
      ``σᵢ`` and right singular vectors ``Ṽ`` of ``P Σ``.
    - ``q-and-p``: the same with rows ``u₁ … u_r`` for ``P``, so ``aᵢ = (sᵢ − λ)₊`` for ``i <= r`` and 0 for the
      others. Driven by errors, ``P`` gets there if it is slow enough (`growth_rates`), and only at the rate
      ``η_P λ² (1 − sⱼ²/sᵢ²)``.
    - ``normative``: ``(Q P)ᵀ`` has become ``W₂``, of rank ``r``; ``aᵢ = (sᵢ − λ)₊`` for the leading ``r`` modes, 0 for
      the others.
    - ``local``: ``Q = (P W₂)ᵀ`` and ``P = P W₂ W₂ᵀ``, so that ``W₂`` has singular values of 1 and ``W₁`` all the rest;
      ``aᵢ (sᵢ − aᵢ) = λ``, ``aᵢ = (sᵢ + √(sᵢ² − 4 λ)) / 2`` for the leading ``r`` modes with ``sᵢ² > 4 λ``.
    - ``fixed``: ``W₁`` is the only solution of ``W₁ (W₁ᵀ W₁ + λ) = Q P Σ``: it has the singular vectors ``B`` of
      ``Q P Σ = A diag(κ) Bᵀ``, and singular values with ``w³ + λ w = κ``; the student is
      ``Σ B diag(w² / (w² + λ)) Bᵀ``.

    As ``λ`` goes to 0 the first and the last become ``Σ Π`` with the projector ``Π`` on the rows of ``P Σ``. That is
    the teacher itself if ``r >= d`` (generic ``P``), and a spurious point if ``r < d``. With ``λ = 0`` these
    are the end points from vanishing initial weights only: a ``W₁`` that starts finite keeps its start, from which the
    readout goes on learning.

    Parameters
    ----------
    state
        Gives ``P``, and for ``fixed`` also ``Q``; its ``W₁`` and ``W₂`` don't matter.

    Raises
    ------
    InputError
        The decay isn't one constant; there are fewer hidden units than modes that ``P`` lets through, unless ``Q`` is
        fixed; or errors drive ``P``, and the point isn't stable: without decay, where ``P`` stops depends on its start,
        and a fast ``P`` never stops.
    """
    _require_one_decay(feedback)
    decay = feedback.decay
    error_dim = min(state.p.shape[-2], task.singular_values.shape[0])
    scale = task.singular_values[0]
    if feedback.rule == "fixed":
        scale = scale * torch.linalg.matrix_norm(state.q).unsqueeze(-1)
        values, right = _right_modes(state.q @ state.p @ task.teacher, error_dim, scale)
        squares = _solve_cubic(values, decay).square()
        shares = torch.where(squares > 0, squares / (squares + decay), 0.0)
    else:
        _require_hidden_units(state.w1.shape[-2], error_dim)
        projection = state.p
        if feedback.rule != "q":
            _require_stability(task, feedback, error_dim)
            projection = task.left[..., :error_dim].mT
        values, right = _right_modes(projection @ task.teacher, error_dim, scale)
        shares = _local_shares(values, decay) if feedback.rule == "local" else _shares(values, decay)
    student = task.teacher @ (right * shares.unsqueeze(-2)) @ right.mT
    return StationaryPoint(student, task.modes(student), task.loss(student), (shares > 0).sum(-1))


def growth_rates(strong: float, weak: float, decay: float, p_rate: float) -> Tensor:
    """Return the rates at which an error-driven ``P`` turns from a learned mode ``i`` to another one, ``j``.

    At the stationary point of `fixed_points`, with ``c = sᵢ − λ``, the perturbations ``x`` of ``W₁`` (towards ``vⱼ``),
    ``y`` of ``W₂`` and ``p`` of ``P`` (towards ``uⱼ``) follow::

        x' = −sᵢ x + √c sⱼ p        y' = sⱼ x − sᵢ y
        p' = η_P [(sⱼ² − λ²) p − sⱼ √c x − λ √c y]

    The determinant is ``−η_P λ² (sᵢ² − sⱼ²)``. A slow ``P`` has the rate ``−η_P λ² (1 − sⱼ²/sᵢ²)``; a ``P`` faster
    than about ``sᵢ / sⱼ²`` runs ahead of ``W₁`` and the point is unstable.

    Parameters
    ----------
    strong, weak
        ``sᵢ`` and ``sⱼ``, with ``sᵢ > λ``.
    decay, p_rate
        ``λ`` and ``η_P``.

    Returns
    -------
    Tensor
        The eigenvalues, complex, shape ``(3,)``.

    Raises
    ------
    InputError
        Mode ``i`` isn't learned under that decay.
    """
    if not strong > decay:
        raise InputError(
            "growth_rates: strong", f"{strong} with a decay of {decay}", "a mode above the decay"
        )
    root = (strong - decay) ** 0.5
    turning = (-weak * root, -decay * root, weak**2 - decay**2)
    rows = [[-strong, 0.0, root * weak], [weak, -strong, 0.0], [p_rate * value for value in turning]]
    rates: Tensor = torch.linalg.eigvals(torch.tensor(rows, dtype=torch.float64))
    return rates


def local_growth_rates(strong: float, weak: float, decay: float, p_rate: float) -> Tensor:
    """Return the rates at which the rule ``local`` turns from a learned mode ``i`` to another one, ``j``.

    As `growth_rates`, with the strength ``w`` of mode ``i``, which ``W₁``, ``Q`` and ``P`` share::

        x' = −(w² + λ) x + w sⱼ p        y' = sⱼ x − (w² + λ) y
        p' = η_P (w sⱼ x − w³ y − λ p)

    For small ``λ`` it is stable where ``η_P sⱼ² < sᵢ²``.

    Parameters
    ----------
    strong, weak
        ``sᵢ`` and ``sⱼ``, with ``sᵢ² > 4 λ``.
    decay, p_rate
        ``λ`` and ``η_P``.

    Returns
    -------
    Tensor
        The eigenvalues, complex, shape ``(3,)``.

    Raises
    ------
    InputError
        Mode ``i`` isn't learned under that decay.
    """
    if not strong**2 > 4 * decay:
        found = f"{strong} with a decay of {decay}"
        raise InputError(
            "local_growth_rates: strong", found, "a mode whose square is above four times the decay"
        )
    w = (strong + (strong**2 - 4 * decay) ** 0.5) / 2
    lost = -(w**2) - decay
    rows = [
        [lost, 0.0, w * weak],
        [weak, lost, 0.0],
        [p_rate * value for value in (w * weak, -(w**3), -decay)],
    ]
    rates: Tensor = torch.linalg.eigvals(torch.tensor(rows, dtype=torch.float64))
    return rates


def _require_one_decay(feedback: LinearFeedback) -> None:
    if not feedback.first_layer_decays or feedback.anneal is not None:
        raise InputError(
            "feedback",
            "a decay that differs between layers or times",
            "one constant decay",
            "Integrate the flow.",
        )


def _require_hidden_units(hidden: int, error_dim: int) -> None:
    if hidden < error_dim:
        raise InputError(
            "state",
            f"{hidden} hidden units",
            f"at least {error_dim}, the modes of the projected task",
            "Integrate the flow.",
        )


def _require_stability(task: LinearTask, feedback: LinearFeedback, error_dim: int) -> None:
    """Refuse ``P`` that doesn't settle on the leading directions though its rule turns it by errors."""
    by_errors = feedback.rule == "q-and-p" and feedback.drive == "errors"
    if not by_errors and feedback.rule != "local":
        return
    values, decay, p_rate = task.singular_values.tolist(), feedback.decay, feedback.p_rate
    rates = growth_rates if by_errors else local_growth_rates
    least = decay if by_errors else 2 * decay**0.5
    learned = [value for value in values[:error_dim] if value > least]
    if decay > 0 and all(
        float(rates(strong, weak, decay, p_rate).real.max()) < 0
        for strong in learned
        for weak in values[error_dim:]
    ):
        return
    raise InputError(
        "feedback",
        f"errors that drive P, with decay {decay} and p_rate {feedback.p_rate}",
        "a decay above 0 and a slower P, for which the stationary point is stable",
        "Integrate the flow.",
    )


def _right_modes(seen: Tensor, rank: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and right singular vectors of what the first layer is taught, up to its rank.

    Values that are nothing but rounding beside the scale of the factors become zero.
    """
    _, values, right = torch.linalg.svd(seen, full_matrices=False)
    values = torch.where(values > 1e-12 * scale, values, 0.0)
    return values[..., :rank], right[..., :rank, :].mT


def _shares(values: Tensor, decay: float) -> Tensor:
    """Return ``a / s`` with ``a = (s − λ)₊``; 0 for a mode that isn't there."""
    return torch.where(values > 0, 1 - decay / values, 0.0).clamp_min(0)


def _local_shares(values: Tensor, decay: float) -> Tensor:
    """Return ``a / s`` with ``a (s − a) = λ``; 0 for a mode that can't hold against the decay."""
    inner = 1 - 4 * decay / values.square()
    return torch.where(inner > 0, (1 + inner.clamp_min(0).sqrt()) / 2, 0.0)


def _solve_cubic(values: Tensor, decay: float) -> Tensor:
    """Return the root ``w >= 0`` of ``w³ + λ w = κ``, by Newton's method.

    The function is convex and increasing there, so that from above the root every step stays above it.
    """
    root = values.pow(1 / 3)
    for _ in range(60):
        root = root - (root**3 + decay * root - values) / (3 * root.square() + decay)
    return torch.where(values > 0, root, 0.0)
