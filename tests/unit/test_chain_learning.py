"""How feedback learns: ``Q`` towards the weights seen through ``P``, ``P`` towards the error's principal directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa import convert
from lowdimfa.chain.maps import ConvMap, LinearMap
from lowdimfa.chain.oja import turn_towards
from lowdimfa.kinds import kinds_of
from lowdimfa.models import mlp
from lowdimfa.muon import Muon


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feedback_of(layer: nn.Module) -> Any:
    return layer.feedback


@pytest.mark.parametrize("rule", ["low-dimensional", "kolen-pollack"])
def test_under_equal_decay_q_converges_to_the_weights_seen_through_p(rule: str) -> None:
    rate, decay, steps, draw = 0.5, 0.1, 60, generator()
    torch.manual_seed(0)
    settings: Any = {"p_rule": "fixed"} if rule == "low-dimensional" else {}
    layer = convert(nn.Linear(6, 8).double(), 3, rule=rule, **settings)
    feedback = feedback_of(layer)
    rows = feedback.P if rule == "low-dimensional" else torch.eye(8).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, weight_decay=decay)

    def distance() -> float:
        return float(torch.dist(feedback.Q.detach(), (rows @ layer.weight.detach()).t()))

    start = distance()
    for _ in range(steps):
        x, error = (torch.randn(4, size, generator=draw).double() for size in (6, 8))
        optimizer.zero_grad()
        layer(x.requires_grad_()).backward(error)
        optimizer.step()
    assert start > 1
    assert distance() == pytest.approx(start * (1 - rate * decay) ** steps, rel=1e-6)


@pytest.mark.parametrize("limit", [None, 16])
def test_oja_turns_p_to_the_errors_principal_directions(limit: int | None) -> None:
    draw = generator()
    basis = torch.linalg.qr(torch.randn(12, 12, generator=draw))[0]
    spread = torch.tensor([3.0, 2.5, 2.0] + [0.3] * 9)
    layer = convert(nn.Linear(5, 12), 3, p_samples=limit, p_lr=0.5)
    rows = feedback_of(layer).P

    def aligned() -> float:
        """Return the cosine of the largest angle between the rows of ``P`` and the three leading directions."""
        return float(torch.linalg.svdvals(torch.linalg.qr(rows.t())[0].t() @ basis[:, :3]).min())

    assert aligned() < 0.7
    for _ in range(150):
        error = torch.randn(32, 12, generator=draw) * spread @ basis.t()
        layer(torch.randn(32, 5, requires_grad=True)).backward(1e-4 * error)  # the scale doesn't matter
    assert aligned() > 0.99
    torch.testing.assert_close(rows @ rows.t(), torch.eye(3), atol=0.02, rtol=0)


def test_oja_turns_every_group_of_a_convolution_to_its_own_errors() -> None:
    layer = convert(nn.Conv2d(4, 8, 1, groups=2), 1, p_lr=0.5)
    rows = feedback_of(layer).P
    error = torch.zeros(2, 8, 3, 3)
    error[:, 1], error[:, 6] = 1.0, 1.0
    for _ in range(100):
        layer(torch.randn(2, 4, 3, 3, requires_grad=True)).backward(error)
    expected = torch.zeros(2, 4)
    expected[0, 1], expected[1, 2] = 1.0, 1.0
    torch.testing.assert_close(rows[:, 0].abs(), expected, atol=1e-3, rtol=0)


def test_one_step_of_oja_is_the_rule_as_it_is_written() -> None:
    errors = torch.randn(20, 7, generator=generator()).double()
    rows = torch.randn(3, 7, generator=generator(2)).double()
    correlation = errors.t() @ errors
    correlation /= correlation.trace()
    expected = rows + 0.3 * rows @ correlation @ (torch.eye(7) - rows.t() @ rows)
    turn_towards(rows, errors, errors @ rows.t(), 0.3)
    torch.testing.assert_close(rows, expected)


def test_a_normalised_step_is_the_rule_on_centred_errors_of_one_deviation() -> None:
    layer = convert(nn.Linear(5, 7).double(), 3, p_rule="normalised-oja", p_lr=0.1, p_samples=None)
    rows = feedback_of(layer).P.clone()
    errors = (1 + torch.randn(20, 7, generator=generator()).double()) * torch.arange(1, 8)
    layer(torch.randn(20, 5).double().requires_grad_()).backward(1e-3 * errors)
    seen = (errors - errors.mean(0)) / errors.std(0, unbiased=False).max()
    correlation = seen.t() @ seen / 20
    expected = rows + 0.1 * rows @ correlation @ (torch.eye(7) - rows.t() @ rows)
    torch.testing.assert_close(feedback_of(layer).P, expected)


def test_a_normalised_step_on_a_wide_layer_is_no_longer_than_is_stable() -> None:
    layer = convert(nn.Linear(5, 300), 8, p_rule="normalised-oja", p_samples=None)
    draws = generator()
    for _ in range(200):
        errors = torch.randn(64, 1, generator=draws) * torch.ones(300)  # one direction, of covariance 300
        layer(torch.randn(64, 5, generator=draws).requires_grad_()).backward(errors)
    rows = feedback_of(layer).P
    assert torch.linalg.matrix_norm(rows, 2) < 1.1
    direction = torch.ones(300) / 300**0.5
    torch.testing.assert_close((rows @ direction).norm(), torch.tensor(1.0))


def test_p_of_an_output_layer_may_see_the_targets() -> None:
    model: Any = convert(mlp(6, 8, 2, 7), 3, p_targets=["1.0"], p_samples=None, p_lr=0.3)
    rows, y = feedback_of(model[1][0]).P.clone(), torch.arange(20) % 3
    functional.cross_entropy(model(torch.randn(20, 6, generator=generator())), y).backward()
    targets = functional.one_hot(y, 7).float()
    correlation = targets.t() @ targets / 20
    expected = rows + 0.3 * rows @ correlation @ (torch.eye(7) - rows.t() @ rows)
    torch.testing.assert_close(feedback_of(model[1][0]).P, expected)


def test_errors_that_are_all_alike_turn_nothing_when_they_are_normalised() -> None:
    layer = convert(nn.Linear(5, 7), 3, p_rule="normalised-oja")
    rows = feedback_of(layer).P.clone()
    layer(torch.randn(20, 5).requires_grad_()).backward(torch.ones(20, 7))
    assert torch.equal(feedback_of(layer).P, rows)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_errors_that_are_zero_or_not_finite_leave_p_as_it_is(value: float) -> None:
    errors = torch.randn(4, 5, generator=generator())
    errors[1 if value else slice(None)] = value
    rows = torch.linalg.qr(torch.randn(5, 2, generator=generator(2)))[0].t().contiguous()
    before = rows.clone()
    turn_towards(rows, errors, errors @ rows.t(), 0.1)
    assert torch.equal(rows, before)


def test_large_errors_in_half_precision_still_turn_p() -> None:
    errors = 500 * torch.randn(4, 5, generator=generator())  # their squares are beyond float16
    rows = torch.linalg.qr(torch.randn(5, 2, generator=generator(2)))[0].t().contiguous()
    expected = rows.clone()
    turn_towards(expected, errors, errors @ expected.t(), 0.5)
    before = rows.clone()
    half = errors.half()
    turn_towards(rows, half, half @ rows.half().t(), 0.5)
    assert torch.dist(before, rows) > 0.05
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)


def backward_once(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return ``P`` and the gradient of ``Q`` after a backward pass."""
    layer(torch.randn(9, 6, generator=generator()).requires_grad_()).square().sum().backward()
    feedback = feedback_of(layer)
    return feedback.P.clone(), feedback.Q.grad


@pytest.mark.parametrize("rule", ["low-dimensional", "normative", "local", "follow", "kolen-pollack"])
def test_muon_has_the_weights_of_a_converted_model_and_adamw_its_feedback(rule: str) -> None:
    torch.manual_seed(0)
    model = convert(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
        4,
        rule=rule,
    )
    kinds = kinds_of(model)
    assert {name for name, kind in kinds.items() if kind == "matrix"} == {"0.weight", "2.weight"}
    optimizer = Muon(model.parameters(), lr=0.05, kinds=kinds)
    assert len(optimizer.param_groups[0]["params"]) == 2
    inputs = torch.randn(64, 6)
    targets = (inputs[:, :3] + inputs[:, 3:]).argmax(-1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]


def test_p_learns_in_training_mode_only() -> None:
    layer = convert(nn.Linear(6, 8), 3)
    start = feedback_of(layer).P.clone()
    evaluated, _ = backward_once(layer.eval())
    assert torch.equal(evaluated, start)
    trained, _ = backward_once(layer.train())
    assert torch.dist(trained, start) > 1e-3
    rested, _ = backward_once(convert(nn.Linear(6, 8).eval(), 3))
    assert torch.equal(rested, start)


def test_fixed_rules_leave_p_and_q_as_drawn() -> None:
    layer = convert(nn.Linear(6, 8), 3, p_rule="fixed", q_rule="fixed")
    start = feedback_of(layer).P.clone()
    rows, gradient = backward_once(layer)
    assert torch.equal(rows, start)
    assert gradient is None


def test_sign_symmetry_delivers_the_signs_at_the_weights_scale() -> None:
    layer = convert(nn.Linear(6, 8), rule="sign-symmetry")
    x = torch.randn(3, 6, requires_grad=True)
    error = torch.randn(3, 8)
    layer(x).backward(error)
    weight = layer.weight.detach()
    torch.testing.assert_close(x.grad, error @ (weight.sign() * weight.square().mean().sqrt()))


def test_feedback_alignment_keeps_what_it_drew_and_kolen_pollack_learns_it() -> None:
    for rule, learns in (("feedback-alignment", False), ("kolen-pollack", True)):
        layer = convert(nn.Linear(6, 8), rule=rule)
        x, error = torch.randn(3, 6, requires_grad=True), torch.randn(3, 8)
        layer(x).backward(error)
        feedback = feedback_of(layer)
        torch.testing.assert_close(x.grad, error @ feedback.Q.detach().t())
        assert (feedback.Q.grad is not None) == learns
        if learns:
            torch.testing.assert_close(feedback.Q.grad, layer.weight.grad.t())


def test_the_gradients_of_a_weight_and_its_kolen_pollack_feedback_are_no_shared_memory() -> None:
    layer = convert(nn.Conv2d(2, 3, 2), rule="kolen-pollack")
    output = layer(torch.randn(1, 2, 4, 4, requires_grad=True))
    ours, theirs = torch.autograd.grad(output.square().sum(), [layer.weight, feedback_of(layer).Q])
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()


def cosine_with_backpropagation(model: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """Return the cosine of the first layer's gradient with the exact one."""
    exact = mlp(20, 64, 4, 5)
    plain = {name: value for name, value in model.state_dict().items() if "feedback" not in name}
    exact.load_state_dict(plain)
    gradients = []
    for one in (model, exact):
        one.zero_grad()
        functional.cross_entropy(one(x), y).backward()
        gradients.append(next(one.parameters()).grad.flatten())
    return float(functional.cosine_similarity(*gradients, dim=0))


def test_learned_feedback_aligns_with_the_exact_gradient_where_fixed_feedback_does_not() -> None:
    draw = generator()
    x = torch.randn(512, 20, generator=draw)
    y = (x @ torch.randn(20, 5, generator=draw)).argmax(-1)
    aligned = {}
    for q_rule in ("hebbian", "fixed"):
        torch.manual_seed(0)
        model = convert(mlp(20, 64, 4, 5), 8, q_rule=q_rule)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        assert abs(cosine_with_backpropagation(model, x, y)) < 0.3
        for step in range(120):
            part = slice(step % 4 * 128, (step % 4 + 1) * 128)
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        aligned[q_rule] = cosine_with_backpropagation(model, x, y)
    assert aligned["hebbian"] > aligned["fixed"] + 0.15


@given(count=st.integers(1, 400), limit=st.integers(1, 80))
def test_chosen_vectors_are_distinct_and_at_most_so_many(count: int, limit: int) -> None:
    errors = torch.arange(count)[:, None].float()
    chosen = LinearMap().vectors(errors, limit).flatten()
    assert len(chosen) == len(set(chosen.tolist())) == min(count, limit)


def test_chosen_vectors_reach_every_sample_and_place() -> None:
    samples, height, width = 16, 8, 8
    places = torch.stack(torch.meshgrid(*map(torch.arange, (samples, height, width)), indexing="ij"), 1)
    chosen = ConvMap().vectors(places.float(), 64)[0]
    for values, count in zip(chosen.t(), (samples, height, width), strict=True):
        assert len(values.unique()) == count


@pytest.mark.parametrize("limit", [None, 7])
def test_vectors_of_a_convolution_are_those_of_a_linear_map_over_its_pixels(limit: int | None) -> None:
    errors = torch.randn(3, 5, 4, 6, generator=generator())
    expected = LinearMap().vectors(errors.permute(0, 2, 3, 1), limit)
    assert torch.equal(ConvMap().vectors(errors, limit)[0], expected)


def test_all_vectors_of_a_convolution_are_its_pixels_in_groups_of_channels() -> None:
    errors = torch.randn(2, 6, 3, 4, generator=generator())
    vectors = ConvMap(groups=2).vectors(errors, None)
    assert vectors.shape == (2, 24, 3)
    assert torch.equal(vectors[1, 12 + 5], errors[1, 3:, 1, 1])
    some = ConvMap(groups=2).vectors(errors, 5)
    assert all(any(torch.equal(one, other) for other in vectors[1]) for one in some[1])
