"""Weight gradients of linear layers, added up inside the matrix product that makes them.

Autograd makes each micro-batch's weight gradient in new memory and then adds it to what there is. One product with
accumulation does both, in half the time where micro-batches are small against the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class AccumulateWeightGradients(TorchFunctionMode):
    """Within it, linear layers on the CPU add to their weight's ``grad`` themselves; results of forwards are the same.

    Only for graphs whose backward is to accumulate: `torch.autograd.grad` would find no gradient of these weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and _accumulates(*args):
            inputs, weight, bias = (*args, None)[:3]
            return _Linear.apply(inputs, weight, bias, weight)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _accumulates(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        isinstance(weight, nn.Parameter)
        and weight.requires_grad
        and weight.is_contiguous()  # as its gradient will be: fused optimisers want both alike
        and weight.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        # Hooks want to see a gradient that autograd carries.
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
    )


class _Linear(torch.autograd.Function):
    """``y = x Wᵀ + b``, whose backward adds ``gᵀ x`` to ``W.grad``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, owner: nn.Parameter) -> Tensor:
        # Under a weight stash the saved weight may be an older one than the parameter that gets the gradient.
        ctx.save_for_backward(inputs, weight if ctx.needs_input_grad[0] else None)
        ctx.owner = owner
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.flatten(0, -2)
        owner: nn.Parameter = ctx.owner
        if owner.grad is None:
            owner.grad = rows.t() @ inputs.flatten(0, -2)
        else:
            owner.grad.addmm_(rows.t(), inputs.flatten(0, -2))
        return (
            None if weight is None else gradient @ weight,
            None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
