"""The mean-field gradient flow of the matrices, and its integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.theory.system import LinearFeedback, LinearState, LinearTask


@dataclass(frozen=True)
class Trajectory:
    """What learning did over time.

    Attributes
    ----------
    times
        Shape ``(records,)``, in units in which the learning rate is 1.
    modes
        ``aᵢ = uᵢᵀ W₂ W₁ vᵢ``, shape ``(records, *batch, d)``.
    loss
        ``½ ‖Σ − W₂ W₁‖²``, shape ``(records, *batch)``.
    final
        The last state.
    """

    times: Tensor
    modes: Tensor
    loss: Tensor
    final: LinearState


class Recorder:
    """Collects a trajectory."""

    def __init__(self, task: LinearTask) -> None:
        self._task = task
        self._times: list[float] = []
        self._modes: list[Tensor] = []
        self._losses: list[Tensor] = []

    def record(self, time: float, state: LinearState) -> None:
        """Take in the state at one time.

        Raises
        ------
        NotFiniteError
            The weights have diverged: the step is too long.
        """
        student = state.student
        if not bool(student.isfinite().all()):
            raise NotFiniteError(f"the linear network diverged before time {time:g}; take a shorter step")
        self._times.append(time)
        self._modes.append(self._task.modes(student))
        self._losses.append(self._task.loss(student))

    def trajectory(self, final: LinearState) -> Trajectory:
        """Return what was recorded."""
        times = torch.tensor(self._times, dtype=torch.float64)
        return Trajectory(times, torch.stack(self._modes), torch.stack(self._losses), final)


def decay_at(feedback: LinearFeedback, time: float) -> float:
    """Return ``λ`` at a time."""
    return feedback.decay if feedback.anneal is None else feedback.decay * math.exp(-time / feedback.anneal)


def changes(
    state: LinearState, feedback: LinearFeedback, decay: float, covariance: Tensor, correlation: Tensor | None
) -> LinearState:
    """Return what the learning rules make of one covariance of error and input.

    The paper's rules (arXiv:2502.20580, one hidden layer), with ``D = ⟨δ xᵀ⟩`` and ``C``, what Oja's rule sees::

        dW₁ = Q P D − λ W₁        dQ = W₁ Dᵀ Pᵀ − λ Q
        dW₂ = D W₁ᵀ − λ W₂        dP = η_P P C (I − Pᵀ P)

    Its second generation has, with the gradient ``G = D W₁ᵀ`` of ``W₂``, for ``normative`` the first and for ``local``
    the second of::

        dQ = η_P (W₂ − (Q P)ᵀ)ᵀ Pᵀ       dP = η_P Qᵀ (W₂ − (Q P)ᵀ)ᵀ
        dQ = η_P ((P G)ᵀ − λ Q)          dP = η_P ((G Q)ᵀ − λ P)

    Parameters
    ----------
    decay
        ``λ`` at this time.
    covariance
        ``D``, shape ``(*batch, m, n)``.
    correlation
        ``P C``, shape ``(*batch, r, m)``; None where ``P`` doesn't learn.
    """
    w1, w2, q, p = state.tensors()
    projected = p @ covariance
    first_decay = decay if feedback.first_layer_decays else 0.0
    dw1 = q @ projected - first_decay * w1
    dw2 = covariance @ w1.mT - decay * w2
    if feedback.rule in ("normative", "local"):
        target = (w2.mT - q @ p) if feedback.rule == "normative" else w1 @ covariance.mT
        lost = 0.0 if feedback.rule == "normative" else decay
        factors = target @ p.mT - lost * q, q.mT @ target - lost * p
        return LinearState(dw1, dw2, *(feedback.p_rate * change for change in factors))
    dq = torch.zeros_like(q) if feedback.rule == "fixed" else w1 @ projected.mT - decay * q
    if correlation is None:
        return LinearState(dw1, dw2, dq, torch.zeros_like(p))
    return LinearState(dw1, dw2, dq, feedback.p_rate * (correlation - correlation @ p.mT @ p))


def velocity(
    state: LinearState, task: LinearTask, feedback: LinearFeedback, time: float = 0.0
) -> LinearState:
    """Return the time derivative of the state in the mean over the data.

    With white inputs ``⟨δ xᵀ⟩ = E = Σ − W₂ W₁``, ``⟨δ δᵀ⟩ = E Eᵀ`` and ``Σ_yy = Σ Σᵀ`` in `changes`.
    """
    return _velocity(state, task.teacher, feedback, time)


def _velocity(state: LinearState, teacher: Tensor, feedback: LinearFeedback, time: float) -> LinearState:
    error = teacher - state.student
    seen = teacher if feedback.drive == "targets" else error
    correlation = state.p @ seen @ seen.mT if feedback.rule == "q-and-p" else None
    return changes(state, feedback, decay_at(feedback, time), error, correlation)


def integrate(
    task: LinearTask, feedback: LinearFeedback, state: LinearState, times: Sequence[float], step: float
) -> Trajectory:
    """Integrate the flow by the classical Runge–Kutta method of order 4.

    Parameters
    ----------
    state
        Weights at time 0, float64.
    times
        When to record, none before 0, increasing.
    step
        Longest step; stability needs it below about ``1 / s₁``. Each record is hit exactly.

    Raises
    ------
    InputError
        The times aren't increasing from 0 on, or the step isn't positive.
    NotFiniteError
        The integration diverged.
    """
    instants = [float(time) for time in times]
    if not instants or instants[0] < 0 or sorted(set(instants)) != instants or not step > 0:
        raise InputError(
            "times, step", f"{instants[:3]} …, {step}", "increasing times from 0 on, a positive step"
        )
    teacher, recorder = task.teacher, Recorder(task)
    shapes = [tensor.shape for tensor in state.tensors()]
    batch = state.w1.dim() - 2

    def derivative(flat: Tensor, time: float) -> Tensor:
        return _pack(_velocity(_unpack(flat, shapes, batch), teacher, feedback, time), batch)

    flat, now = _pack(state, batch), 0.0
    for instant in instants:
        count = math.ceil((instant - now) / step - 1e-9)
        for index in range(count):
            length = (instant - now) / count
            flat = _runge_kutta(derivative, flat, now + index * length, length)
        now = instant
        recorder.record(now, _unpack(flat, shapes, batch))
    return recorder.trajectory(_unpack(flat, shapes, batch))


def _runge_kutta(
    derivative: Callable[[Tensor, float], Tensor], y: Tensor, time: float, step: float
) -> Tensor:
    k1 = derivative(y, time)
    k2 = derivative(y + step / 2 * k1, time + step / 2)
    k3 = derivative(y + step / 2 * k2, time + step / 2)
    k4 = derivative(y + step * k3, time + step)
    return y + step / 6 * (k1 + 2 * (k2 + k3) + k4)


def _pack(state: LinearState, batch: int) -> Tensor:
    """Return all weights as one vector for each network: far fewer operations in a Runge–Kutta step."""
    return torch.cat([tensor.flatten(batch) for tensor in state.tensors()], dim=-1)


def _unpack(flat: Tensor, shapes: Sequence[torch.Size], batch: int) -> LinearState:
    parts = torch.split(flat, [math.prod(shape[batch:]) for shape in shapes], dim=-1)
    return LinearState(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
