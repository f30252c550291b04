"""Weight gradients of linear layers, made of the rows of several micro-batches at once.

Autograd makes each micro-batch's weight gradient in new memory and adds it to what there is. Where a micro-batch has few
rows against the size of the layer, moving the gradient to and from memory takes about as long as the product. So rows
wait until there are enough of them for one product, or until the gradient is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ENOUGH_ROWS = 256
"""More in one product hardly make it faster, and each row that waits takes memory."""


class WeightGradients(TorchFunctionMode):
    """Within it, linear layers on the CPU leave their weight's gradient to this; results of forwards are the same.

    Only for graphs whose backward is to accumulate: `torch.autograd.grad` would find no gradient of these weights. A
    ``grad`` is complete after `finish`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[nn.Parameter, list[tuple[Tensor, Tensor]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and _can_wait(*args):
            inputs, weight, bias = (*args, None)[:3]
            return _Linear.apply(inputs, weight, bias, weight, self)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))

    def add(self, weight: nn.Parameter, gradient: Tensor, inputs: Tensor) -> None:
        """Add ``gᵀ x`` to a weight's ``grad``, now or later.

        Parameters
        ----------
        weight
            Shape ``(outputs, inputs)``.
        gradient
            ``g``, that of a layer's output, shape ``(rows, outputs)``.
        inputs
            ``x``, shape ``(rows, inputs)``.
        """
        waiting = self._waiting.setdefault(weight, [])
        waiting.append((gradient, inputs))
        if sum(len(rows) for rows, _ in waiting) >= ENOUGH_ROWS:
            self._make(weight)

    def finish(self) -> None:
        """Make what is left to be made."""
        for weight in list(self._waiting):
            self._make(weight)

    def _make(self, weight: nn.Parameter) -> None:
        gradient, inputs = (
            rows[0] if len(rows) == 1 else torch.cat(rows)
            for rows in zip(*self._waiting.pop(weight), strict=True)
        )
        if weight.grad is None:
            weight.grad = gradient.t() @ inputs
        else:
            weight.grad.addmm_(gradient.t(), inputs)


def _can_wait(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
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
    """``y = x Wᵀ + b``, whose backward leaves the gradient of ``W`` to `WeightGradients`."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        owner: nn.Parameter,
        gradients: WeightGradients,
    ) -> Tensor:
        # Under a weight stash the saved weight may be an older one than the parameter that gets the gradient.
        ctx.save_for_backward(inputs, weight if ctx.needs_input_grad[0] else None)
        ctx.owner, ctx.gradients = owner, gradients
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.flatten(0, -2)
        ctx.gradients.add(ctx.owner, rows, inputs.flatten(0, -2))
        return (
            None if weight is None else gradient @ weight,
            None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )
