"""The one autograd function of the chain form: exact gradients for the weights, feedback for the input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Size, Tensor

from lowdimfa.chain.maps import Map
from lowdimfa.errors import InputError
from lowdimfa.rules import CHAIN_RULES


@dataclass(frozen=True)
class Incoming:
    """What a map's backward pass has when an error arrives.

    Attributes
    ----------
    map
        Its products.
    error
        ``δ``, in the shape of the map's output.
    x
        The map's input; None where nothing is to be learned.
    input_shape
        Its shape.
    kernel
        Feedback weights in the layout of a weight, as they were in the forward pass.
    weight_gradient
        The exact gradient of the forward weights; None where they are frozen.
    learns
        Whether the kernel is to be learned.
    """

    map: Map
    error: Tensor
    x: Tensor | None
    input_shape: Size
    kernel: Tensor
    weight_gradient: Tensor | None
    learns: bool

    def kept_input(self) -> Tensor:
        """Return the map's input where the kernel learns."""
        assert self.x is not None, "the input is kept where something is learned from it"
        return self.x

    def correlate(self, error: Tensor) -> Tensor:
        """Return the correlation of the map's input with an error of the kernel's outputs, in the kernel's shape."""
        return self.map.weight_gradient(self.kept_input(), error, self.kernel.shape)

    def q_gradient(self, rows: Tensor, projected: Tensor, shape: Size) -> Tensor:
        """Return ``h (P δ)ᵀ``, which is also ``(P ∇W)ᵀ``, in the shape of the kernel: by the cheaper of the two products.

        Parameters
        ----------
        rows, projected
            ``P`` and ``P δ``.
        shape
            Of the kernel of ``Q``.
        """
        if self.weight_gradient is not None and self.map.count(self.error) > rows.shape[-1]:
            return self.map.combine(rows, self.weight_gradient)
        return self.map.weight_gradient(self.kept_input(), projected, shape)

    def p_gradient(self, rows: Tensor, kernel: Tensor) -> Tensor:
        """Return ``(∇W Q)ᵀ`` in the shape of ``P``: from the gradient of ``W``, or as ``Σ (Qᵀ h) δᵀ`` if that is cheaper.

        Parameters
        ----------
        rows, kernel
            ``P``, and the kernel of ``Q``.
        """
        inner = self.map.matrix(kernel)
        count, outputs, inputs = self.map.count(self.error), rows.shape[-1], inner.shape[-1]
        if self.weight_gradient is not None and outputs * inputs <= count * (outputs + inputs):
            return inner @ self.map.matrix(self.weight_gradient).mT
        mapped = self.map.run(self.kept_input(), kernel, None)
        return self.map.vectors(mapped, None).mT @ self.map.vectors(self.error, None)


class Delivery(Protocol):
    """How an error passes a map."""

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Return the error at the map's input, and the gradient of the kernel if it learns."""


Gradients = tuple[Tensor | None, ...]


class Once(torch.autograd.Function):
    """The identity, which refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> Tensor:
        """Refuse."""
        raise InputError(
            CHAIN_RULES.key, "a derivative of a gradient that feedback has made", "first derivatives alone"
        )


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Let a backward pass refuse second derivatives.

    Torch's decorator of that name takes the gradients for constants where the arriving error is one, as ones are under
    ``sum``: the penalty of a gradient would silently lack a part.
    """

    @wraps(backward)
    def refusing(ctx: Any, *arriving: Tensor) -> Gradients:
        with torch.no_grad():
            found = backward(ctx, *arriving)
        # Transforms of torch.func always ask for second derivatives, wanted or not.
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return found
        return tuple(None if one is None else Once.apply(one.detach().requires_grad_()) for one in found)  # type: ignore[no-untyped-call]

    return refusing


class MapFunction(torch.autograd.Function):
    """A map whose input gradient is the delivery's."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, map_: Map, delivery: Delivery
    ) -> Tensor:
        """Run the map."""
        # Torch adds a bias to tokens through a view of the output. Autograd lets nobody change a function's view in
        # place, as a ReLU(inplace=True) behind the layer does. To ask whether it is one would break torch.compile.
        return map_.run(x, weight, bias).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs; the input only where something is learned from it."""
        x, weight, _, kernel, ctx.map, ctx.delivery = inputs
        ctx.input_shape, ctx.weight_shape = x.shape, weight.shape
        learns = weight.requires_grad or kernel.requires_grad
        ctx.save_for_backward(x if learns else None, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight, bias and kernel."""
        x, kernel = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, wants_kernel, *_ = ctx.needs_input_grad
        with without_autocast(error.device.type):
            weight_gradient = ctx.map.weight_gradient(x, error, ctx.weight_shape) if wants_weight else None
            bias_gradient = ctx.map.bias_gradient(error) if wants_bias else None
            delivered, kernel_gradient = None, None
            if wants_input:
                incoming = Incoming(ctx.map, error, x, ctx.input_shape, kernel, weight_gradient, wants_kernel)
                delivered, kernel_gradient = _checked(ctx.delivery.deliver(incoming), ctx.input_shape)
        return delivered, weight_gradient, bias_gradient, kernel_gradient, None, None


def _checked(found: object, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Refuse what autograd would take for something else: it adds up an error that has one dimension too many."""
    if isinstance(found, tuple) and len(found) == 2:
        delivered, kernel_gradient = found
        if isinstance(delivered, Tensor) and delivered.shape == shape:
            return delivered, kernel_gradient
        found = f"an error of shape {tuple(delivered.shape)}" if isinstance(delivered, Tensor) else delivered
    raise InputError(
        CHAIN_RULES.key,
        f"a rule that delivers {found}",
        f"an error of shape {tuple(shape)}, and a gradient or None",
    )


def run_map(
    map_: Map, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, delivery: Delivery
) -> Tensor:
    """Run a map with a backward pass by the delivery, in autocast's type where autocast is on."""
    if weight.is_complex():
        found = "a layer whose weights have become complex since"
        raise InputError("convert: model", found, "weights of real numbers", "Call revert() first.")
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return _apply(x, weight, bias, kernel, map_, delivery)
    to = torch.get_autocast_dtype(kind)
    cast = [_cast(tensor, to) for tensor in (x, weight, bias, kernel)]
    with without_autocast(kind):
        return _apply(*cast, map_, delivery)


def current_backward() -> int:
    """Return a number for the backward pass under way: another one for each."""
    return int(torch._C._current_graph_task_id())  # torch has no public name for it


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Switch autocast off, if a device has it: those that only infer shapes don't."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _apply(*arguments: object) -> Tensor:
    output: Tensor = MapFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


def _cast(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
    """Convert as autocast does, which leaves double precision as it is."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(to)
