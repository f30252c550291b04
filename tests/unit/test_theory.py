"""The integrated flow of linear networks: what it conserves, its closed forms, and the order of its integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowdimfa.errors import InputError, NotFiniteError
from lowdimfa.theory import (
    LinearFeedback,
    LinearState,
    LinearTask,
    aligned_start,
    closed_form_modes,
    integrate,
    misalignment,
    mode_strength,
    oja_projector,
    velocity,
)

VALUES = (2.0, 1.5, 1.0, 0.7)
INPUTS, OUTPUTS, HIDDEN = 7, 5, 8


def draw(seed: int, error_dim: int, scale: float = 0.3) -> tuple[LinearTask, LinearState]:
    generator = torch.Generator().manual_seed(seed)
    task = LinearTask.random(VALUES, INPUTS, OUTPUTS, generator)
    return task, LinearState.random(task, HIDDEN, error_dim, scale, generator)


def with_feedback(state: LinearState, q: Tensor, p: Tensor) -> LinearState:
    return LinearState(state.w1, state.w2, q, p)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-7) -> bool:
    return float((found - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("seed", range(3))
def test_backpropagation_is_the_special_case(seed: int) -> None:
    """With P = I and Q = W₂ᵀ the velocity is minus the gradient of the loss, and Q follows W₂ᵀ."""
    task, state = draw(seed, OUTPUTS)
    w1, w2 = state.w1.clone().requires_grad_(), state.w2.clone().requires_grad_()
    task.loss(w2 @ w1).backward()
    aligned = with_feedback(state, state.w2.mT, torch.eye(OUTPUTS, dtype=torch.float64))
    change = velocity(aligned, task, LinearFeedback("q"))
    assert w1.grad is not None and w2.grad is not None
    assert near(change.w1, -w1.grad, 1e-12) and near(change.w2, -w2.grad, 1e-12)
    assert near(change.q, -w2.grad.mT, 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_factors_of_the_second_generation_follow_gradients(seed: int) -> None:
    task, state = draw(seed, 2)
    q, p, w2 = (tensor.clone().requires_grad_() for tensor in (state.q, state.p, state.w2))
    objectives = {
        "normative": ((q @ p).mT - state.w2).square().sum() / 2,
        "local": task.loss(w2 @ state.w1),
    }
    fit = torch.autograd.grad(objectives["normative"], [q, p])
    (own,) = torch.autograd.grad(objectives["local"], w2)
    through = ((state.p @ own).mT, (own @ state.q).mT)
    for rule, expected in (("normative", fit), ("local", through)):
        change = velocity(state, task, LinearFeedback(rule, p_rate=0.5))  # type: ignore[arg-type]
        assert near(change.q, -0.5 * expected[0], 1e-12) and near(change.p, -0.5 * expected[1], 1e-12)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), decay=st.sampled_from([0.0, 0.1]))
def test_what_the_local_rule_conserves(seed: int, decay: float) -> None:
    """W₁W₁ᵀ − QQᵀ and PPᵀ − QᵀQ only decay."""
    task, state = draw(seed, 2)
    final = integrate(task, LinearFeedback("local", decay=decay), state, [3.0], 0.005).final
    for one, other in (
        (lambda s: s.w1 @ s.w1.mT, lambda s: s.q @ s.q.mT),
        (lambda s: s.p @ s.p.mT, lambda s: s.q.mT @ s.q),
    ):
        before, after = one(state) - other(state), one(final) - other(final)
        assert near(after, before * math.exp(-2 * decay * 3.0), 1e-6)


@pytest.mark.parametrize("rule", ["fixed", "q", "q-and-p", "normative", "local"])
@pytest.mark.parametrize("drive", ["targets", "errors"])
def test_the_velocity_is_the_mean_of_the_sampled_rules(rule: str, drive: str) -> None:
    """The rules averaged over inputs whose second moment is exactly the identity."""
    from lowdimfa.theory.descent import _from_samples

    task, state = draw(4, 2)
    feedback = LinearFeedback(rule, drive, p_rate=0.7, decay=0.03)  # type: ignore[arg-type]
    inputs = torch.eye(INPUTS, dtype=torch.float64) * INPUTS**0.5
    sampled = _from_samples(state, feedback, feedback.decay, inputs, inputs @ task.teacher.mT)
    mean = velocity(state, task, feedback)
    assert all(near(a, b, 1e-12) for a, b in zip(sampled.tensors(), mean.tensors(), strict=True))


@pytest.mark.slow
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), decay=st.sampled_from([0.0, 0.1]), rule=st.sampled_from(["q", "q-and-p"]))
def test_what_learned_feedback_conserves(seed: int, decay: float, rule: str) -> None:
    """W₁W₁ᵀ − QQᵀ only decays, whatever P does, and P stays orthonormal."""
    task, state = draw(seed, 2)
    time = 3.0
    final = integrate(task, LinearFeedback(rule, "errors", decay=decay), state, [time], 0.02).final  # type: ignore[arg-type]
    before = state.w1 @ state.w1.mT - state.q @ state.q.mT
    after = final.w1 @ final.w1.mT - final.q @ final.q.mT
    assert near(after, before * math.exp(-2 * decay * time), 1e-6)
    assert near(final.p @ final.p.mT, torch.eye(2, dtype=torch.float64), 1e-6)


@pytest.mark.slow
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), decay=st.sampled_from([0.0, 0.2]))
def test_learned_q_forgets_its_misalignment_exponentially(seed: int, decay: float) -> None:
    task, state = draw(seed, 3)
    final = integrate(task, LinearFeedback("q", decay=decay), state, [4.0], 0.02).final
    assert near(misalignment(final), misalignment(state) * math.exp(-decay * 4.0), 1e-6)


def test_misalignment_follows_an_annealed_decay() -> None:
    task, state = draw(0, 3)
    feedback = LinearFeedback("q", decay=0.5, anneal=2.0)
    final = integrate(task, feedback, state, [4.0], 0.02).final
    integral = 0.5 * 2.0 * (1 - math.exp(-4.0 / 2.0))
    assert near(misalignment(final), misalignment(state) * math.exp(-integral), 1e-6)


def test_fixed_q_moves_the_first_layer_in_its_own_span_only() -> None:
    task, state = draw(2, 2)
    final = integrate(task, LinearFeedback("fixed", decay=0.1), state, [5.0], 0.02).final
    basis = torch.linalg.qr(state.q)[0]
    outside = torch.eye(HIDDEN, dtype=torch.float64) - basis @ basis.mT
    assert near(outside @ final.w1, outside @ state.w1 * math.exp(-0.5), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("error_dim", [1, 2, 4, OUTPUTS])
def test_aligned_feedback_follows_its_closed_form(decay: float, error_dim: int) -> None:
    """For every rank of P, of which r = m is backpropagation."""
    task, drawn = draw(1, error_dim)
    start = aligned_start(task, drawn.p, 1e-2, HIDDEN)
    times = torch.tensor([0.0, 1.0, 3.0, 6.0, 12.0], dtype=torch.float64)
    flow = integrate(task, LinearFeedback("q", decay=decay), start, times.tolist(), 0.02)
    modes, loss = closed_form_modes(task, drawn.p, 1e-2, decay, times)
    assert near(flow.modes, modes, 1e-6) and near(flow.loss, loss, 1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0, 1.7])
def test_mode_strength_solves_its_equation(decay: float) -> None:
    """c' = 2 c (σ − λ − c) by finite differences, on both sides of σ = λ and at it."""
    sigma = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)
    times = torch.linspace(0, 5, 40, dtype=torch.float64)
    half = 1e-5
    value = mode_strength(sigma, 0.05, decay, times)
    slope = (
        mode_strength(sigma, 0.05, decay, times + half) - mode_strength(sigma, 0.05, decay, times - half)
    ) / (2 * half)
    assert near(value[0], torch.full((3,), 0.05, dtype=torch.float64), 1e-15)
    assert near(slope, 2 * value * (sigma - decay - value), 1e-9)


@pytest.mark.slow
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), time=st.floats(0.1, 4.0))
def test_oja_flow_has_its_closed_form_whatever_the_weights_do(seed: int, time: float) -> None:
    task, state = draw(seed, 2)
    final = integrate(task, LinearFeedback("q-and-p", p_rate=0.8), state, [time], 0.02).final
    correlation = task.teacher @ task.teacher.mT
    assert near(final.p.mT @ final.p, oja_projector(state.p, correlation, 0.8, time), 1e-6)


def test_oja_ends_in_the_leading_directions_of_the_targets() -> None:
    task, state = draw(8, 2)
    final = integrate(task, LinearFeedback("q-and-p"), state, [30.0], 0.1).final
    leading = task.left[:, :2]
    assert near(final.p.mT @ final.p, leading @ leading.mT)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_closed_form_of_oja_ends_there_too_however_late(rank: int) -> None:
    task, state = draw(8, rank)
    leading = task.left[:, :rank]
    found = oja_projector(state.p, task.teacher @ task.teacher.mT, 1.0, 1e4)
    assert near(found, leading @ leading.mT)


def test_feedback_and_batches_that_are_not_meant_are_refused() -> None:
    with pytest.raises(InputError, match="q_and_p"):
        LinearFeedback("q_and_p")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="target"):
        LinearFeedback("q-and-p", "target")  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    tasks = [LinearTask.random(values, 4, 4, draws) for values in ([2.0, 1.0], [3.0, 1.0])]
    with pytest.raises(InputError, match="same"):
        LinearTask.stack(tasks)


def test_halving_the_step_divides_the_error_by_sixteen() -> None:
    """The method is of order 4, for a decay that changes in time too."""
    task, state = draw(9, 2)
    feedback = LinearFeedback("q-and-p", "errors", decay=0.5, anneal=1.0)

    def end(step: float) -> Tensor:
        return integrate(task, feedback, state, [2.0], step).final.student

    exact = end(0.005)
    errors = [float((end(step) - exact).norm()) for step in (0.1, 0.05)]
    assert 12 < errors[0] / errors[1] < 20


def test_a_batch_learns_as_its_members_do() -> None:
    networks = [draw(seed, 2) for seed in range(3)]
    feedback = LinearFeedback("q-and-p", "errors", decay=0.1)
    both = integrate(
        LinearTask.stack([task for task, _ in networks]),
        feedback,
        LinearState.stack([state for _, state in networks]),
        [0.0, 2.0],
        0.05,
    )
    for index, (task, state) in enumerate(networks):
        alone = integrate(task, feedback, state, [0.0, 2.0], 0.05)
        assert near(both.modes[:, index], alone.modes, 1e-12) and near(both.loss[:, index], alone.loss, 1e-12)


def test_refusals() -> None:
    task, state = draw(0, 2)
    with pytest.raises(InputError, match="decreasing order"):
        LinearTask.random((1.0, 2.0), 4, 4, torch.Generator())
    for values in ((2.0, 2.0), (float("nan"),), (2.0, float("nan")), (float("inf"), 1.0), (1.0, 0.0)):
        with pytest.raises(InputError, match="all different"):
            LinearTask.random(values, 4, 4, torch.Generator())
    for numbers in ({"decay": float("nan")}, {"p_rate": float("nan")}, {"anneal": float("nan")}):
        with pytest.raises(InputError, match="nan"):
            LinearFeedback("q", **numbers)
    with pytest.raises(InputError, match="positive step"):
        integrate(task, LinearFeedback("q"), state, [1.0], float("nan"))
    with pytest.raises(InputError, match="at most"):
        LinearTask.random((2.0, 1.0), 4, 1, torch.Generator())
    with pytest.raises(InputError, match="error_dim"):
        draw(0, OUTPUTS + 1)
    with pytest.raises(InputError, match="decay"):
        LinearFeedback("q", decay=-1.0)
    with pytest.raises(InputError, match="hidden"):
        aligned_start(task, state.p, 0.1, 1)
    with pytest.raises(InputError, match="increasing times"):
        integrate(task, LinearFeedback("q"), state, [1.0, 0.5], 0.1)
    with pytest.raises(NotFiniteError, match="diverged"):
        integrate(task, LinearFeedback("q"), state, [200.0], 5.0)
