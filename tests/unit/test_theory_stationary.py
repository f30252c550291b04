"""Where the flow of linear networks stops, and where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from lowdimfa.errors import InputError
from lowdimfa.theory import (
    LinearFeedback,
    LinearState,
    LinearTask,
    fixed_points,
    growth_rates,
    integrate,
    local_growth_rates,
    velocity,
)

pytestmark = pytest.mark.slow

VALUES = (2.0, 1.5, 1.0, 0.7)
INPUTS, OUTPUTS, HIDDEN = 7, 5, 8


def draw(seed: int, error_dim: int, scale: float = 0.3) -> tuple[LinearTask, LinearState]:
    generator = torch.Generator().manual_seed(seed)
    task = LinearTask.random(VALUES, INPUTS, OUTPUTS, generator)
    return task, LinearState.random(task, HIDDEN, error_dim, scale, generator)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-7) -> bool:
    return float((found - expected).abs().max()) <= tolerance


def leading_point(task: LinearTask, error_dim: int, decay: float) -> LinearState:
    """Return weights that have learned the leading modes and have the leading directions for P."""
    root = (task.singular_values[:error_dim] - decay).sqrt()
    units = torch.eye(HIDDEN, error_dim, dtype=torch.float64)
    left, right = task.left[:, :error_dim], task.right[:, :error_dim]
    return LinearState(units * root @ right.mT, left * root @ units.mT, units * root, left.mT)


@pytest.mark.parametrize("rule", ["fixed", "q", "q-and-p"])
@pytest.mark.parametrize("error_dim", [2, 4])
def test_learning_stops_at_the_stationary_point_of_the_closed_form(rule: str, error_dim: int) -> None:
    feedback = LinearFeedback(rule, decay=0.1)  # type: ignore[arg-type]
    task, state = draw(3, error_dim)
    final = integrate(task, feedback, state, [200.0], 0.3).final
    expected = fixed_points(task, feedback, state)
    assert near(final.student, expected.student, 1e-5)
    assert int(torch.linalg.matrix_rank(final.student, atol=1e-4)) == int(expected.rank) <= error_dim
    speed = sum(float(part.square().sum()) for part in velocity(final, task, feedback).tensors()) ** 0.5
    assert speed < 1e-5


@pytest.mark.parametrize(
    ("rule", "error_dim", "ends"),
    [
        ("normative", 2, (1.9, 1.4, 0, 0)),
        ("normative", 4, (1.9, 1.4, 0.9, 0.6)),
        ("local", 2, (1 + 0.9**0.5, 0.75 + 0.4625**0.5, 0, 0)),  # (s + √(s² − 4 λ)) / 2
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 0.3])
def test_the_second_generation_ends_in_the_leading_modes(
    rule: Any, error_dim: int, ends: tuple[float, ...], scale: float
) -> None:
    feedback = LinearFeedback(rule, decay=0.1)
    task, state = draw(3, error_dim, scale)
    final = integrate(task, feedback, state, [300.0], 0.2).final
    point = fixed_points(task, feedback, state)
    expected = torch.tensor(ends, dtype=torch.float64)
    assert near(point.modes, expected, 1e-9) and near(final.student, point.student, 1e-5)
    q, p, w2 = final.q, final.p, final.w2
    if rule == "normative":
        assert near(q @ p, w2.mT, 1e-5)
    else:
        assert near(q, (p @ w2).mT, 1e-5) and near(p, p @ w2 @ w2.mT, 1e-5)


def local_point(task: LinearTask, error_dim: int, decay: float) -> LinearState:
    """Return weights and factors that have learned the leading modes by the local rule."""
    values = task.singular_values[:error_dim]
    strength = (values + (values.square() - 4 * decay).sqrt()) / 2
    units = torch.eye(HIDDEN, error_dim, dtype=torch.float64)
    left, right = task.left[:, :error_dim], task.right[:, :error_dim]
    return LinearState(units * strength @ right.mT, left @ units.mT, units * strength, (left * strength).mT)


@pytest.mark.parametrize("p_rate", [0.5, 2.0, 4.0])
def test_the_growth_rates_of_the_local_rule_are_in_the_spectrum_of_the_flow(p_rate: float) -> None:
    decay, error_dim = 0.05, 2
    feedback = LinearFeedback("local", decay=decay, p_rate=p_rate)
    task, _ = draw(3, error_dim)
    point = local_point(task, error_dim, decay)
    assert sum(float(part.square().sum()) for part in velocity(point, task, feedback).tensors()) < 1e-20
    shapes = [tensor.shape for tensor in point.tensors()]

    def flat_velocity(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        state = LinearState(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
        return torch.cat([part.flatten() for part in velocity(state, task, feedback).tensors()])

    whole = jacobian(flat_velocity, torch.cat([tensor.flatten() for tensor in point.tensors()]))
    spectrum = torch.linalg.eigvals(whole)
    for rate in local_growth_rates(VALUES[1], VALUES[2], decay, p_rate):
        assert float((spectrum - rate).abs().min()) < 1e-6
    is_stable = all(
        local_growth_rates(strong, weak, decay, p_rate).real.max() < 0
        for strong in VALUES[:2]
        for weak in VALUES[2:]
    )
    assert is_stable == (p_rate < VALUES[1] ** 2 / VALUES[2] ** 2)
    if not is_stable:
        with pytest.raises(InputError, match="slower P"):
            fixed_points(task, feedback, point)


@pytest.mark.parametrize("rule", ["fixed", "q"])
def test_fixed_p_below_the_rank_of_the_teacher_is_spurious(rule: str) -> None:
    """As λ → 0 the student becomes the teacher restricted to the rows of P Σ: the P-projected residual is zero."""
    task, state = draw(5, 2)
    point = fixed_points(task, LinearFeedback(rule, decay=1e-9), state)  # type: ignore[arg-type]
    seen = state.p @ task.teacher
    basis = torch.linalg.qr(seen.mT)[0]
    assert near(point.student, task.teacher @ basis @ basis.mT, 1e-6)
    assert near(state.p @ point.student, seen, 1e-6)
    best = sum(value**2 for value in VALUES[2:]) / 2
    assert float(point.loss) > 1.1 * best  # worse than the best map of rank r, which learning P finds


@pytest.mark.parametrize("rule", ["fixed", "q"])
def test_fixed_p_is_not_spurious_once_r_is_the_rank_of_the_teacher_and_nothing_decays(rule: str) -> None:
    task, state = draw(5, len(VALUES))
    point = fixed_points(task, LinearFeedback(rule), state)  # type: ignore[arg-type]
    assert float(point.loss) < 1e-20


def test_target_driven_p_recovers_the_leading_modes_and_no_other() -> None:
    task, state = draw(6, 2, scale=1e-3)
    feedback = LinearFeedback("q-and-p", decay=0.05)
    modes = integrate(task, feedback, state, [120.0], 0.3).modes[-1]
    expected = torch.tensor([VALUES[0] - 0.05, VALUES[1] - 0.05, 0.0, 0.0], dtype=torch.float64)
    assert near(modes, expected, 1e-3)


KEPT = LinearFeedback("q-and-p", "errors", p_rate=0.6, decay=0.3, first_layer_decays=False, anneal=60.0)


def worst_mode(feedback: LinearFeedback) -> float:
    """Return the largest relative error of a mode for a network with r = 2 < d = 4, from small weights."""
    task, state = draw(0, 2, scale=1e-4)
    modes = integrate(task, feedback, state, [400.0], 0.3).modes[-1]
    return float((1 - modes / task.singular_values).abs().max())


def test_error_driven_p_recovers_every_mode_if_the_first_layer_keeps_what_it_learned() -> None:
    assert worst_mode(KEPT) < 0.01


@pytest.mark.parametrize("change", [{"first_layer_decays": True}, {"anneal": None}, {"decay": 0.0}], ids=str)
def test_it_takes_a_kept_first_layer_and_an_annealed_decay(change: dict[str, Any]) -> None:
    assert worst_mode(replace(KEPT, **change)) > 0.02


@pytest.mark.parametrize("p_rate", [0.3, 1.5])
def test_growth_rates_are_those_of_the_linearised_flow(p_rate: float) -> None:
    """With one learned mode and one other, against the Jacobian: slow P is stable, fast P isn't."""
    task = LinearTask.random((1.5, 1.0), 3, 2, torch.Generator().manual_seed(0))
    feedback = LinearFeedback("q-and-p", "errors", p_rate=p_rate, decay=0.3)
    point = leading_point(task, 1, 0.3)
    shapes = [part.shape for part in point.tensors()]
    sizes = [shape.numel() for shape in shapes]

    def flat_velocity(flat: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        return torch.cat([part.flatten() for part in velocity(LinearState(*parts), task, feedback).tensors()])

    flat = torch.cat([part.flatten() for part in point.tensors()])
    assert near(flat_velocity(flat), torch.zeros_like(flat), 1e-12)
    spectrum = torch.linalg.eigvals(jacobian(flat_velocity, flat))
    rates = growth_rates(1.5, 1.0, 0.3, p_rate)
    assert all(float((spectrum - rate).abs().min()) < 1e-9 for rate in rates)
    growing = int((spectrum.real > 1e-6).sum())
    assert growing == int((rates.real > 0).sum()) == (0 if p_rate < 1 else 2)


def test_slow_p_has_the_rate_of_the_adiabatic_limit() -> None:
    strong, weak, decay, p_rate = 1.5, 1.0, 0.01, 0.01
    slowest = float(growth_rates(strong, weak, decay, p_rate).real.max())
    assert slowest == pytest.approx(-p_rate * decay**2 * (1 - (weak / strong) ** 2), rel=0.02)


def test_slow_p_driven_by_errors_ends_where_targets_drive_it() -> None:
    feedback = LinearFeedback("q-and-p", "errors", p_rate=0.6, decay=0.3)
    task, state = draw(3, 2)
    final = integrate(task, feedback, state, [150.0], 0.3).final
    assert near(final.student, fixed_points(task, feedback, state).student, 1e-3)


def test_fast_p_driven_by_errors_never_stops_and_never_keeps_more_than_r_modes() -> None:
    feedback = LinearFeedback("q-and-p", "errors", p_rate=2.0, decay=0.3)
    task, state = draw(3, 2)
    modes = integrate(task, feedback, state, [60.0 + 2 * count for count in range(20)], 0.1).modes
    assert float(modes.std(0).max()) > 0.2
    assert float((modes / task.singular_values).sum(-1).max()) < 2
    with pytest.raises(InputError, match="slower P"):
        fixed_points(task, feedback, state)


def test_without_decay_error_driven_p_stops_where_it_sees_no_error() -> None:
    """P E = 0 is enough: a spurious point, and none that depends on the rules alone."""
    feedback = LinearFeedback("q-and-p", "errors", p_rate=0.4)
    task, state = draw(3, 2, scale=1e-4)
    final = integrate(task, feedback, state, [100.0], 0.25).final
    error = task.teacher - final.student
    assert near(final.p @ error, torch.zeros(2, INPUTS, dtype=torch.float64), 1e-6)
    assert float(error.norm()) > 1
    with pytest.raises(InputError, match="decay above 0"):
        fixed_points(task, feedback, state)


def test_refusals() -> None:
    task, state = draw(0, 2)
    for feedback in (LinearFeedback("q", anneal=1.0), LinearFeedback("q", first_layer_decays=False)):
        with pytest.raises(InputError, match="one constant decay"):
            fixed_points(task, feedback, state)
    for rates in (growth_rates, local_growth_rates):
        with pytest.raises(InputError, match=r"strong: found 1\.0 with a decay of 2\.0"):
            rates(1.0, 0.5, 2.0, 1.0)


@pytest.mark.parametrize("rule", ["q", "q-and-p", "normative", "local"])
def test_a_student_too_narrow_for_the_modes_is_refused(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    task = LinearTask.random(VALUES, INPUTS, OUTPUTS, generator)
    narrow = LinearState.random(task, 1, 2, 0.1, generator)
    feedback = LinearFeedback(rule, decay=0.05, p_rate=0.3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 hidden units; expected at least 2"):
        fixed_points(task, feedback, narrow)


def test_fixed_q_has_its_point_however_few_hidden_units_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    task = LinearTask.random(VALUES, INPUTS, OUTPUTS, generator)
    narrow, feedback = LinearState.random(task, 1, 2, 0.1, generator), LinearFeedback("fixed", decay=0.05)
    final = integrate(task, feedback, narrow, [400.0], 0.1).final
    assert near(final.student, fixed_points(task, feedback, narrow).student, 1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_no_error_reaches_learns_nothing(decay: float) -> None:
    task, state = draw(0, 1)
    silent = replace(state, q=torch.zeros_like(state.q))
    beside = torch.linalg.qr(torch.cat([task.left, torch.eye(OUTPUTS, dtype=torch.float64)], 1))[0][
        :, len(VALUES) :
    ]
    unseen = replace(state, p=beside.mT.contiguous())
    for rule, start in (("fixed", silent), ("fixed", unseen), ("q", unseen)):
        point = fixed_points(task, LinearFeedback(rule, decay=decay), start)  # type: ignore[arg-type]
        assert not point.student.any() and int(point.rank) == 0
