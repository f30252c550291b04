"""Closed forms of the linear dynamics.

With ``Q = (P W₂)ᵀ`` at the start, feedback with a fixed ``P`` trains ``P W₂`` and ``W₁`` exactly as backpropagation
would train them on the projected task ``P Σ = Σᵢ σᵢ ũᵢ ṽᵢᵀ``; the rest of ``W₂`` follows as a readout of what ``W₁``
has learned. Saxe, McClelland and Ganguli (2014) solved the former without decay; the rest is derived in
`docs/theory.md`, beyond the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.theory.system import LinearState, LinearTask


def mode_strength(singular_value: Tensor, start: float, decay: float, times: Tensor) -> Tensor:
    """Return the strength ``c(t)`` of a balanced, aligned mode.

    ``c' = 2 c (σ − λ − c)``, so ``c = κ / (1 + (κ / c₀ − 1) exp(−2 κ t))`` with ``κ = σ − λ`` (Saxe et al., 2014, for
    ``λ = 0``), a sigmoid; with ``κ <= 0`` the mode dies.

    Parameters
    ----------
    singular_value
        ``σ``, shape ``(…)``.
    start
        ``c₀ > 0``.
    decay
        ``λ``.
    times
        Shape ``(records,)``.

    Returns
    -------
    Tensor
        Shape ``(records, …)``.
    """
    time = times.view(-1, *(1,) * singular_value.dim())
    rate = 2 * (singular_value - decay)
    vanishing = rate.abs() < 1e-12
    integral = torch.where(
        vanishing, time, -torch.expm1(-rate * time) / torch.where(vanishing, torch.ones_like(rate), rate)
    )
    return start / (torch.exp(-rate * time) + 2 * start * integral)


def closed_form_modes(
    task: LinearTask, projection: Tensor, start: float, decay: float, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Return modes and loss over time under aligned feedback through a fixed ``P``, from `aligned_start`.

    The student's map is ``W(t) = Σᵢ (cᵢ/σᵢ) [Pᵀ P + (1 − e^{−σᵢ t}) (I − Pᵀ P)] Σ ṽᵢ ṽᵢᵀ``: each mode of the projected
    task grows as a sigmoid, and takes with it whatever else of the teacher depends on the same inputs. With ``P = I``
    this is backpropagation and ``aᵢ = cᵢ``; with rows ``u₁ … u_r`` (what Oja's rule finds) the same for ``i <= r``,
    and the others stay 0.

    Parameters
    ----------
    projection
        ``P`` with orthonormal rows, shape ``(*batch, r, m)``.
    start, decay
        ``c₀`` and ``λ``.
    times
        Shape ``(records,)``.

    Returns
    -------
    modes, loss
        Shapes ``(records, *batch, d)`` and ``(records, *batch)``.
    """
    teacher = task.teacher
    _, sigma, right = _projected_modes(task, projection)
    strength = mode_strength(sigma, start, decay, times)
    settled = 1 - torch.exp(-sigma * times.view(-1, *(1,) * sigma.dim()))
    reached = teacher @ right  # Σ ṽᵢ, shape (*batch, m, modes)
    within = projection.mT @ (projection @ reached)
    share = (strength / sigma).unsqueeze(-2)
    columns = share * (within + settled.unsqueeze(-2) * (reached - within))
    student = columns @ right.mT
    return task.modes(student), task.loss(student)


def aligned_start(task: LinearTask, projection: Tensor, start: float, hidden: int) -> LinearState:
    """Return the balanced, aligned state from which `closed_form_modes` holds.

    ``W₁ = √c₀ A Ṽᵀ``, ``W₂ = √c₀ Pᵀ Ũ Aᵀ``, ``Q = (P W₂)ᵀ``, where ``A`` has orthonormal columns (here unit vectors).

    Raises
    ------
    InputError
        There are fewer hidden units than modes of the projected task.
    """
    left, _, right = _projected_modes(task, projection)
    modes = right.shape[-1]
    if hidden < modes:
        raise InputError("hidden", str(hidden), f"at least {modes}, the modes of the projected task")
    spread = torch.eye(hidden, modes, dtype=right.dtype)
    w1 = start**0.5 * spread @ right.mT
    w2 = start**0.5 * projection.mT @ left @ spread.mT
    return LinearState(w1, w2, (projection @ w2).mT.contiguous(), projection)


def oja_projector(start: Tensor, correlation: Tensor, p_rate: float, time: float) -> Tensor:
    """Return ``Pᵀ P`` after Oja's subspace flow with a constant correlation.

    ``P' = η_P P C (I − Pᵀ P)`` keeps the rows of ``P`` orthonormal, and they span those of ``P₀ exp(η_P C t)`` (Yan,
    Helmke and Moore, 1994), hence the span of the leading eigenvectors of ``C`` in the end. For a correlation that
    changes, the exponential becomes the solution of ``T' = η_P T C``: directions rank by the energy that they have
    shown so far.

    Parameters
    ----------
    start
        ``P₀`` with orthonormal rows, shape ``(*batch, r, m)``.
    correlation
        ``C``, symmetric, shape ``(*batch, m, m)``.
    time
        Not negative.

    Returns
    -------
    Tensor
        Shape ``(*batch, m, m)``.
    """
    values, vectors = torch.linalg.eigh(correlation)
    exponents = p_rate * time * (values - values[..., -1:])  # a common factor changes no span
    # In steps, between which rows are made orthonormal again: beyond e^16 they would differ by rounding alone.
    steps = max(1, math.ceil(float(exponents.abs().max()) / 16))
    step = (vectors * torch.exp(exponents / steps).unsqueeze(-2)) @ vectors.mT
    basis: Tensor = start.mT
    for _ in range(steps):
        basis = torch.linalg.qr(step @ basis)[0]
    return basis @ basis.mT


def misalignment(state: LinearState) -> Tensor:
    """Return ``Q − (P W₂)ᵀ``, shape ``(*batch, h, r)``.

    While ``Q`` learns and ``P`` is fixed it is ``exp(−∫ λ dt)`` times what it was (Kolen and Pollack, 1994, seen
    through ``P``): both sides have the same gradient and the same decay. A moving ``P`` adds ``−W₂ᵀ P'ᵀ`` to its rate.
    """
    return state.q - (state.p @ state.w2).mT


def _projected_modes(task: LinearTask, projection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``Ũ, σ, Ṽ`` of ``P Σ``, as many modes as its generic rank."""
    left, sigma, right = torch.linalg.svd(projection @ task.teacher, full_matrices=False)
    rank = min(projection.shape[-2], task.singular_values.shape[0])
    return left[..., :rank], sigma[..., :rank], right[..., :rank, :].mT
