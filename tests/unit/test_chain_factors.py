"""The second generation of the chain form: where its factors start, what they learn from, and that they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import convert, feedback_parameters
from lowdimfa.chain.attention import PARTS
from lowdimfa.chain.starts import leading

Layer = Callable[[], nn.Module]

LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6)),
    "linear, tokens": (lambda: nn.Linear(6, 8), (2, 9, 6)),
    "linear, many samples": (lambda: nn.Linear(6, 8), (64, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 8)),
    "few pixels": (lambda: nn.Conv2d(4, 6, 3), (1, 4, 3, 3)),
    "strided, padded, dilated": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2)),
        (2, 4, 7, 8),
    ),
    "grouped": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3), (2, 6, 5, 5)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str, rule: str, r: int = 2, **settings: Any) -> tuple[Any, Tensor]:
    """Return a converted layer in float64, and an input."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return convert(build().double(), r, rule=rule, **settings), x


def backward(layer: nn.Module, x: Tensor) -> None:
    output = layer(x)
    error = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    torch.autograd.backward(output, error)


def matrices(layer: Any, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``W``, ``P`` and ``Qᵀ`` of a layer, one matrix for each group."""
    feedback, weight = layer.feedback, layer.weight if weight is None else weight
    if not isinstance(layer, nn.Conv2d):
        return weight, feedback.P, feedback.Q.t()
    whole = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    return whole, feedback.P, feedback.Q.reshape(*feedback.P.shape[:2], -1)


@each_layer
@pytest.mark.parametrize("rule", ["local", "normative", "low-dimensional", "follow"])
def test_the_svd_start_is_the_best_approximation_of_its_rank(name: str, rule: str) -> None:
    layer, _ = made(name, rule, start="svd")
    weight, rows, inner = matrices(layer)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = left[..., :2] * values[..., None, :2] @ right[..., :2, :]
    torch.testing.assert_close(rows.mT @ inner, best)


def test_large_weights_are_sketched_almost_as_well_and_alike_for_a_seed() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, state = torch.randn(300, 200, generator=draw), torch.get_rng_state()
    left, values, right = leading(weight, 10, 7)
    found = left * values @ right
    exact_left, exact_values, exact_right = torch.linalg.svd(weight, full_matrices=False)
    best = exact_left[:, :10] * exact_values[:10] @ exact_right[:10]
    assert torch.dist(weight, found) < 1.002 * torch.dist(weight, best)
    assert torch.equal(leading(weight, 10, 7)[0], left)
    assert not torch.equal(leading(weight, 10, 8)[0], left)
    assert torch.equal(torch.get_rng_state(), state)


@each_layer
def test_the_normative_gradient_is_that_of_its_objective(name: str) -> None:
    layer, x = made(name, "normative", start="random")
    weight, rows, inner = matrices(layer)
    objective = (rows.mT @ inner - weight.detach()).square().sum() / 2
    expected = torch.autograd.grad(objective, [layer.feedback.P, layer.feedback.Q])
    backward(layer, x)
    torch.testing.assert_close(layer.feedback.P.grad, expected[0])
    torch.testing.assert_close(layer.feedback.Q.grad, expected[1])


@each_layer
def test_the_local_gradient_is_the_weights_own_through_the_other_factor(name: str) -> None:
    layer, x = made(name, "local", start="random")
    plain = LAYERS[name][0]().double()
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    backward(plain, x.detach())
    own: Any = plain.weight.grad
    backward(layer, x)
    gradient, rows, inner = (one.detach() for one in matrices(layer, own))
    expected = rows @ gradient
    shape = layer.feedback.Q.shape
    q = expected.t() if expected.dim() == 2 else expected.reshape(shape)
    torch.testing.assert_close(layer.feedback.Q.grad, q)
    torch.testing.assert_close(layer.feedback.P.grad, inner @ gradient.mT)


@each_layer
def test_local_and_normative_deliver_the_formed_product(name: str) -> None:
    for rule in ("local", "normative"):
        layer, x = made(name, rule)
        _, rows, inner = matrices(layer)
        plain = LAYERS[name][0]().double()
        plain.weight = nn.Parameter((rows.mT @ inner).detach().reshape(layer.weight.shape))
        same = x.detach().clone().requires_grad_()
        backward(layer, x)
        backward(plain, same)
        torch.testing.assert_close(x.grad, same.grad)


@each_layer
@pytest.mark.parametrize("start", ["transposed", "svd"])
def test_q_that_follows_stays_the_weights_seen_through_p_whatever_the_optimiser(
    name: str, start: Any
) -> None:
    layer, x = made(name, "follow", start=start)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.3, amsgrad=True)
    first = layer.feedback.Q.clone()
    for _ in range(5):
        optimizer.zero_grad()
        backward(layer, x)
        optimizer.step()
    backward(layer, x)  # takes the last step
    weight, rows, inner = matrices(layer)
    torch.testing.assert_close(inner, rows @ weight)
    assert torch.dist(layer.feedback.Q, first) > 0.1
    assert not list(feedback_parameters(layer))


def test_projections_of_attention_start_and_learn_by_their_own_weights() -> None:
    attention: Any = convert(nn.MultiheadAttention(8, 2, batch_first=True).double(), 3, rule="normative")
    weights = dict(zip(PARTS, attention.in_proj_weight.detach().chunk(3), strict=True))
    weights["out"] = attention.out_proj.weight.detach()
    feedback = {**attention.feedback, "out": attention.out_proj.feedback}
    for part, weight in weights.items():
        left, values, right = torch.linalg.svd(weight)
        product = (feedback[part].Q @ feedback[part].P).detach().t()
        torch.testing.assert_close(product, left[:, :3] * values[:3] @ right[:3])
        nn.init.normal_(feedback[part].Q)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(attention(x, x, x, need_weights=False)[0].square().sum())
    for part, weight in weights.items():
        q, p = feedback[part].Q, feedback[part].P
        objective = ((q @ p).t() - weight).square().sum() / 2
        expected = torch.autograd.grad(objective, [q, p])
        for parameter, gradient in zip((q, p), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(("refresh_every", "training"), [(None, True), (2, True), (None, False)])
def test_the_normative_rule_may_learn_at_every_nth_pass_alone(
    refresh_every: int | None, training: bool
) -> None:
    layer, x = made("linear", "normative", start="random", fit_every=3, refresh_every=refresh_every)
    layer.train(training)
    learned = []
    for _ in range(6):
        layer.zero_grad()
        backward(layer, x)
        learned.append(layer.feedback.P.grad is not None and layer.feedback.Q.grad is not None)
    assert learned == [False, False, True] * 2


def test_passes_in_evaluation_mode_bring_no_refresh_nearer() -> None:
    layer, x = made("linear", "local", refresh_every=1)
    before = layer.feedback.P.clone()
    layer.eval()
    nn.init.normal_(layer.weight)
    backward(layer, x)
    backward(layer, x)
    assert torch.equal(layer.feedback.P, before)


@pytest.mark.parametrize("rule", ["local", "normative", "low-dimensional"])
def test_gradients_of_feedback_are_clamped_by_the_kind_of_layer(rule: str) -> None:
    for name, bound in (("linear", 0.3), ("convolution", 0.02)):
        grads = []
        for clamp in (None, (0.3, 0.02)):
            layer, x = made(name, rule, start="random", clamp=clamp)
            backward(layer, x)
            grads.append(layer.feedback.Q.grad)
        assert grads[0].abs().max() > bound
        torch.testing.assert_close(grads[1], grads[0].clamp(-bound, bound))


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("start", ["random", "transposed", "svd"])
def test_a_refresh_of_a_layer_with_fewer_inputs_than_error_numbers_is_its_weights(
    inputs: int, start: Any
) -> None:
    layer = convert(nn.Linear(inputs, 32), 16, rule="local", start=start, refresh_every=1)
    x = torch.randn(5, inputs, requires_grad=True)
    for _ in range(2):
        backward(layer, x)
    feedback: Any = layer.feedback
    torch.testing.assert_close((feedback.Q @ feedback.P).t(), layer.weight)


@pytest.mark.parametrize("rule", ["local", "normative"])
def test_a_layer_that_runs_twice_counts_a_backward_pass_once(rule: str) -> None:
    layer, x = made("linear", rule, refresh_every=2)
    for count in (1, 2):
        (layer(x) + layer(2 * x)).sum().backward()
        assert layer.feedback.get_extra_state().tolist() == [count, count]


def test_a_layer_that_runs_twice_is_fitted_at_every_nth_pass() -> None:
    layer, x = made("linear", "normative", start="random", fit_every=2)
    learned = []
    for _ in range(4):
        layer.zero_grad()
        (layer(x) + layer(2 * x)).sum().backward()
        learned.append(layer.feedback.Q.grad is not None)
    assert learned == [False, True] * 2
