"""What low-rank feedback delivers and learns from, and that it costs thin products alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lowdimfa import convert
from lowdimfa.chain.attention import PARTS
from lowdimfa.chain.function import Incoming
from lowdimfa.chain.layers import map_of

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided, padded, dilated": {"kernel_size": (3, 2), "stride": 2, "padding": (2, 1), "dilation": (1, 2)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 3},
    "same": {"kernel_size": 2, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def backward(output: Tensor) -> Tensor:
    """Send an uneven error back, and return it."""
    error = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    output.backward(error)
    return error


def through(x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Any) -> Tensor:
    """Return ``x Wᵀ + b`` whose error reaches ``x`` through the formed product ``Q P`` by ordinary autograd."""
    formed = functional.linear(x, (feedback.Q @ feedback.P).detach().t())
    return functional.linear(x.detach(), weight, bias) + formed - formed.detach()


@pytest.mark.parametrize("start", ["random", "transposed"])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 3, 6)])
def test_a_linear_layer_delivers_the_formed_product(shape: tuple[int, ...], start: Any) -> None:
    layer = convert(nn.Linear(6, 8).double(), 3, start=start)
    feedback: Any = layer.feedback
    formed = (feedback.Q @ feedback.P).detach()
    x = drawn(*shape).requires_grad_()
    error = backward(layer(x))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, error @ formed.t())
    assert torch.linalg.matrix_rank(formed) == 3


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_a_convolution_delivers_the_formed_product(geometry: str) -> None:
    layer = convert(nn.Conv2d(6, 12, **CONVOLUTIONS[geometry]).double(), 2)
    feedback: Any = layer.feedback
    rows, kernel = feedback.P.clone(), feedback.Q.detach().clone()
    per_group = kernel.view(layer.groups, 2, -1)
    formed = nn.Parameter((rows.mT @ per_group).view_as(layer.weight))
    plain = nn.Conv2d(6, 12, **CONVOLUTIONS[geometry]).double()
    plain.weight = formed
    inputs = [drawn(3, 6, 7, 8).requires_grad_() for _ in range(2)]
    for module, x in zip((layer, plain), inputs, strict=True):
        backward(module(x))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_attention_delivers_the_formed_products_and_differentiates_softmax_exactly() -> None:
    width = 8
    attention = convert(nn.MultiheadAttention(width, 2, batch_first=True).double(), 3, p_rule="fixed")
    core = nn.MultiheadAttention(width, 2, bias=False, batch_first=True).double()
    with torch.no_grad():
        core.in_proj_weight.copy_(torch.eye(width).repeat(3, 1))
        core.out_proj.weight.copy_(torch.eye(width))
    x, same = (drawn(2, 5, width).requires_grad_() for _ in range(2))
    backward(attention(x, x, x, need_weights=False)[0])

    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    feedback: Any = attention.feedback
    projected = [
        through(same, w, b, feedback[part]) for part, w, b in zip(PARTS, weights, biases, strict=True)
    ]
    last: Any = attention.out_proj
    output = through(core(*projected, need_weights=False)[0], last.weight, last.bias, last.feedback)
    learned = attention.in_proj_weight.grad
    attention.in_proj_weight.grad = None
    backward(output)
    torch.testing.assert_close(x.grad, same.grad)
    torch.testing.assert_close(learned, attention.in_proj_weight.grad)


@pytest.mark.parametrize("batch", [3, 50], ids=["few samples", "many samples"])
def test_the_gradient_of_q_is_the_correlation_of_input_and_projected_error(batch: int) -> None:
    layer = convert(nn.Linear(6, 8).double(), 3)
    feedback: Any = layer.feedback
    rows = feedback.P.clone()
    x = drawn(batch, 6).requires_grad_()
    error = backward(layer(x))
    torch.testing.assert_close(feedback.Q.grad, x.detach().t() @ (error @ rows.t()))
    torch.testing.assert_close(layer.weight.grad, error.t() @ x.detach())


@pytest.mark.parametrize("rule", ["low-dimensional", "kolen-pollack", "local", "follow"])
def test_the_feedback_of_frozen_weights_stays_with_them(rule: Any) -> None:
    layer = convert(nn.Linear(6, 8).double().requires_grad_(False), 3, rule=rule)
    before = {name: value.clone() for name, value in layer.feedback.state_dict().items() if name in "PQ"}
    backward(layer(drawn(5, 6).requires_grad_()))
    assert all(parameter.grad is None for parameter in layer.feedback.parameters())
    assert all(torch.equal(before[name], layer.feedback.state_dict()[name]) for name in before)


@pytest.mark.parametrize("rule", ["low-dimensional", "feedback-alignment", "direct"])
def test_fixed_feedback_does_not_learn_where_all_parameters_are_let_go(rule: Any) -> None:
    options = {} if rule == "feedback-alignment" else {"q_rule": "fixed"}
    model = convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), rule=rule, **options)
    model.requires_grad_(True)
    backward(model(torch.randn(5, 6).requires_grad_()))
    assert model[2].weight.grad is not None
    assert model[2].feedback.Q.grad is None


@pytest.mark.parametrize("rule", ["low-dimensional", "local"])
def test_an_empty_batch_passes_a_convolution(rule: Any) -> None:
    layer = convert(nn.Conv2d(4, 8, 3, groups=2), 2, rule=rule)
    x = torch.zeros(0, 4, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert not layer.feedback.Q.grad.any()


@pytest.mark.parametrize("pixels", [2, 6], ids=["few pixels", "many pixels"])
def test_the_gradient_of_a_kernel_is_that_of_a_convolution_to_the_projected_channels(pixels: int) -> None:
    layer = convert(nn.Conv2d(4, 16, 2, padding=1, groups=2).double(), 3)
    feedback: Any = layer.feedback
    mixed = (feedback.P @ layer.weight.detach().view(2, 8, -1)).view(6, 2, 2, 2).requires_grad_()
    rows = feedback.P.clone()
    x = drawn(1, 4, pixels, pixels).requires_grad_()
    error = backward(layer(x))
    projected = torch.einsum("grc,ngchw->ngrhw", rows, error.unflatten(1, (2, 8))).flatten(1, 2)
    functional.conv2d(x.detach(), mixed, None, padding=1, groups=2).backward(projected)
    torch.testing.assert_close(feedback.Q.grad, mixed.grad)


class Sizes(TorchDispatchMode):
    """Keep the number of elements of every result that isn't a view."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.largest = max(self.largest, *sizes, 0)
        return result


def deliver(layer: Any, x: Tensor, error: Tensor) -> Tensor:
    """Carry an error through feedback that learns, without the gradient of the weights, and return the kernel."""
    map_ = map_of(layer)
    kernel: Tensor = layer.feedback.kernel(map_, layer.weight.detach())
    layer.feedback.deliver(Incoming(map_, error, x, x.shape, kernel.detach(), None, True))
    return kernel


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_product_of_q_and_p_is_never_formed(kind: str) -> None:
    width, r = 96, 4
    if kind == "linear":
        layer, x = nn.Linear(width, width), torch.randn(8, width)
    else:
        layer, x = nn.Conv2d(width, width, 1), torch.randn(2, width, 2, 2)
    convert(layer, r)
    error = torch.randn_like(layer(x))
    with Sizes() as sizes:
        deliver(layer, x, error)
    assert sizes.largest <= 8 * width < width**2


@pytest.mark.parametrize("batch", [32, 256], ids=["batch < width", "batch > width"])
def test_a_backward_pass_costs_the_weights_gradient_and_thin_products(batch: int) -> None:
    inputs, outputs, r, seen = 128, 64, 8, 16
    layer = convert(nn.Linear(inputs, outputs), r, p_samples=seen)
    output = layer(torch.randn(batch, inputs, requires_grad=True))
    with FlopCounterMode(display=False) as counter:
        output.backward(torch.ones_like(output))
    weights = batch * inputs * outputs
    project, deliver = batch * outputs * r, batch * r * inputs
    learn = r * inputs * min(batch, outputs)
    turn = 2 * seen * outputs * r
    assert counter.get_total_flops() == 2 * (weights + project + deliver + learn + turn)


@pytest.mark.parametrize("batch", [32, 256], ids=["batch < width", "batch > width"])
@pytest.mark.parametrize("rule", ["local", "normative", "follow"])
def test_learning_both_factors_costs_thin_products(rule: str, batch: int) -> None:
    inputs, outputs, r = 128, 64, 8
    layer = convert(nn.Linear(inputs, outputs), r, rule=rule)
    x = torch.randn(batch, inputs, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = layer(x)
        output.backward(torch.ones_like(output))
    forward = batch * inputs * outputs
    deliver = batch * r * (inputs + outputs)
    learn = {
        "local": r * (inputs * min(batch, outputs) + min(batch * (inputs + outputs), inputs * outputs)),
        "normative": 2 * r * inputs * outputs + 2 * r * r * (inputs + outputs),
        "follow": r * inputs * outputs,
    }[rule]
    assert counter.get_total_flops() == 2 * (2 * forward + deliver + learn)


@pytest.mark.parametrize("rule", ["local", "normative"])
def test_learning_both_factors_forms_nothing_of_the_weights_size(rule: str) -> None:
    width, r = 96, 4
    layer = convert(nn.Linear(width, width), r, rule=rule)
    with Sizes() as sizes:
        kernel = deliver(layer, torch.randn(8, width), torch.randn(8, width))
        kernel.backward(torch.zeros_like(kernel))
    assert layer.feedback.P.grad is not None
    assert sizes.largest <= 8 * width < width**2


@pytest.mark.parametrize("learns", [False, True])
def test_the_input_is_kept_only_where_something_is_learned_from_it(learns: bool) -> None:
    layer = convert(nn.Linear(6, 8).requires_grad_(learns), 3)
    x, kept = torch.randn(5, 6, requires_grad=True), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum().backward()
    assert (x.data_ptr() in kept) == learns
    assert x.grad is not None


def test_rows_of_p_are_orthonormal_and_the_identity_at_full_rank() -> None:
    feedback: Any = convert(nn.Conv2d(4, 24, 3, groups=2), 5).feedback
    torch.testing.assert_close(feedback.P @ feedback.P.mT, torch.eye(5).expand(2, 5, 5))
    full: Any = convert(nn.Linear(4, 6), 100).feedback
    assert torch.equal(full.P, torch.eye(6))


def test_random_feedback_has_the_scale_of_the_weights() -> None:
    layer = nn.Linear(400, 300)
    feedback: Any = convert(layer, 100).feedback
    assert feedback.Q.std().item() == pytest.approx(layer.weight.std().item(), rel=0.05)
    zero = nn.Linear(400, 300)
    nn.init.zeros_(zero.weight)
    feedback = convert(zero, 100).feedback
    assert feedback.Q.std().item() == pytest.approx(1 / math.sqrt(400), rel=0.05)
