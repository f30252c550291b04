"""Layers of width 8 that make something of autograd: what people's models do, one use each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

WIDTH = 8


class Layer(nn.Module):
    """A layer with parts of its own and a function as its forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def body(inner: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, inner), nn.Tanh(), nn.Dropout(0.3), nn.Linear(inner, WIDTH))


def energy_step(layer: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(layer.energy(point).sum(), point, create_graph=True)
    return x - slope


def jacobians(layer: Any, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda one: layer.inner(one).square().sum()))(x)


class ScaledBackward(torch.autograd.Function):
    """Keeps its weight beside the graph and draws in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        kept = (torch.rand(()) + random.random() + numpy.random.random()) * gradient
        return (kept @ ctx.weight if ctx.needs_input_grad[0] else None), kept.t() @ x


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


class Averaged(nn.Module):
    """Has a buffer that each forward moves and uses."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return (x - self.mean) * self.weight


def tied() -> nn.Module:
    shared = linear()
    return nn.Sequential(shared, nn.Tanh(), shared)


def frozen() -> nn.Module:
    layers = nn.Sequential(linear(), nn.Tanh(), linear())
    layers[0].requires_grad_(False)
    return layers


def with_hooks() -> nn.Module:
    layers = nn.Sequential(linear(), nn.Tanh(), linear())
    layers[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    layers[1].register_forward_hook(lambda module, inputs, output: output + 1)
    layers[1].register_full_backward_hook(lambda module, grad_input, grad_output: (3 * grad_input[0],))
    layers[2].register_full_backward_pre_hook(lambda module, grad_output: (0.5 * grad_output[0],))
    layers[2].weight.register_hook(lambda gradient: -gradient)
    return layers


def with_parametrization() -> nn.Module:
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def random_depth(layer: Any, x: Tensor) -> Tensor:
    if layer.training and random.random() + numpy.random.random() < 1.0:
        return x
    return x + layer.inner(x)


def straight_through(layer: Any, x: Tensor) -> Tensor:
    y = layer.inner(x)
    return y + (y.round() - y).detach()


def in_place(layer: Any, x: Tensor) -> Tensor:
    return layer.inner(x.relu_()).mul_(2)


def offloaded(layer: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return layer.inner(x)


def lower_precision(layer: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return layer.inner(x).float()


def checkpointed(layer: Any, x: Tensor) -> Tensor:
    return checkpoint(layer.inner, x, use_reentrant=False)


def nested(layer: Any, x: Tensor) -> Tensor:
    return checkpoint(
        lambda y: layer.outer(checkpoint(layer.inner, y, use_reentrant=False)), x, use_reentrant=False
    )


def as_function(layer: Any, x: Tensor) -> Tensor:
    doubled = {name: 2 * value for name, value in layer.inner.named_parameters()}
    return torch.func.functional_call(layer.inner, doubled, (x,))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return ScaledBackward.apply(x, self.weight)


WORKS: dict[str, Callable[[], nn.Module]] = {
    "plain layers": body,
    "checkpoint": lambda: Layer(checkpointed, inner=body()),
    "checkpoint of other shapes": lambda: Layer(checkpointed, inner=body(12)),
    "nested checkpoints": lambda: Layer(nested, inner=body(), outer=body(5)),
    "a gradient in the forward": lambda: Layer(
        energy_step, energy=nn.Sequential(linear(), nn.Tanh(), nn.Linear(WIDTH, 1))
    ),
    "functional_call": lambda: Layer(as_function, inner=linear()),
    "vmap": lambda: Layer(lambda layer, x: torch.func.vmap(layer.inner)(x), inner=linear()),
    "hooks": with_hooks,
    "a parametrisation": with_parametrization,
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "spectral_norm by hooks": lambda: nn.utils.spectral_norm(linear()),
    "tied layers": tied,
    "frozen layers": frozen,
    "a backward of one's own, which draws": Weighted,
    "batch norm": lambda: nn.Sequential(
        nn.BatchNorm1d(WIDTH), linear(), nn.BatchNorm1d(WIDTH, momentum=None)
    ),
    "a buffer that moves": Averaged,
    "draws from Python and NumPy": lambda: Layer(random_depth, inner=linear()),
    "a straight-through estimate": lambda: Layer(straight_through, inner=linear()),
    "in place at both ends": lambda: Layer(in_place, inner=linear()),
    "dropout in place": lambda: nn.Sequential(nn.Dropout(0.5, inplace=True), linear()),
    "autocast of its own": lambda: Layer(lower_precision, inner=linear()),
    "a lazy layer": lambda: nn.LazyLinear(WIDTH),
    "attention": lambda: Layer(
        lambda layer, x: layer.inner(x[:, None, :])[:, 0],
        inner=nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
    ),
}
"""Uses that work whatever the order of a run, by name."""


WHOLE_UPDATES: dict[str, Callable[[], nn.Module]] = {
    "jacobians": lambda: Layer(jacobians, inner=nn.Sequential(linear(), nn.Tanh())),
    "saved on the CPU": lambda: Layer(offloaded, inner=body()),
}
"""Uses that work with staleness 0 only: they leave no room for the hooks by which stale weights are kept."""


def network(*uses: str, seed: int = 0) -> nn.Sequential:
    """Return a plain network: a layer, the uses, and a classifier of 4."""
    torch.manual_seed(seed)
    known = WORKS | WHOLE_UPDATES
    return nn.Sequential(linear(), *(known[use]() for use in uses), nn.Linear(WIDTH, 4))
