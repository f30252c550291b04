"""The direct form under the interface of the chain form: every layer gets ``Q P e`` from the output error ``e``.

With ``q_rule="fixed"`` and ``r = m`` this is direct feedback alignment (Nøkland, 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.function import Delivery, Incoming, current_backward
from lowdimfa.chain.maps import Map
from lowdimfa.chain.oja import Oja
from lowdimfa.chain.rules import ChainRule
from lowdimfa.chain.starts import drawn_like
from lowdimfa.errors import InputError
from lowdimfa.feedback.projection import orthonormal_rows

WHERE = "the rule 'direct'"


@dataclass
class Call:
    """One forward pass of the model, and ``c = P e`` once its backward pass has begun.

    Attributes
    ----------
    error
        Of the latest backward pass that began at the model's output.
    backward
        Which one that was.
    """

    error: Tensor | None = None
    backward: int = -1


class OutputError(nn.Module):
    """Catches the gradient of a model's output and projects it; one for all layers of the model.

    Parameters
    ----------
    task_dim, error_dim
        ``m`` and ``r``.
    like
        A weight of the model, for type and device.
    config
        How ``P`` learns.
    generator
        Source of the initial ``P``.
    """

    P: Tensor

    def __init__(
        self, task_dim: int, error_dim: int, like: Tensor, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("P", orthonormal_rows(error_dim, task_dim, generator).to(like))
        self._oja = Oja(config) if config.p_rule != "fixed" and error_dim < task_dim else None
        self._calls: list[Call] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def watch(self, model: nn.Module) -> None:
        """Follow the forward passes of a model."""
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def release(self) -> None:
        """Follow it no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def current(self) -> Call:
        """Return the forward pass that is under way.

        Raises
        ------
        InputError
            There is none.
        """
        if not self._calls:
            raise InputError(
                WHERE,
                "a layer that runs outside of its model's forward",
                "a call of the model that was converted, whose output has the error",
                "For blocks with a broadcast error use lowdimfa.decouple.",
            )
        return self._calls[-1]

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._calls.append(Call())

    def _end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        call = self._calls.pop()
        if output is None or not torch.is_grad_enabled():  # the forward failed, or no backward will come
            return
        if not isinstance(output, Tensor):
            found = f"a model that puts out a {type(output).__name__}"
            raise InputError(WHERE, found, "one tensor, whose gradient is the error")
        require_outputs(output)
        if output.requires_grad:
            output.register_hook(partial(self._receive, call))  # type: ignore[no-untyped-call]

    def _receive(self, call: Call, error: Tensor) -> None:
        task_dim = self.P.shape[1]
        if error.shape[-1] != task_dim:
            raise InputError(
                WHERE,
                f"an output of width {error.shape[-1]}",
                f"{task_dim}, for which the feedback was made",
                "Give convert() an example input.",
            )
        errors = error.detach()
        call.error = errors @ self.P.t().to(error.dtype)
        call.backward = current_backward()
        if self._oja is not None and self.training:
            self._oja.turn(self.P, errors.reshape(-1, task_dim), call.error.reshape(-1, len(self.P)))


def require_outputs(output: Tensor) -> None:
    """Refuse an output without a dimension for outputs: errors of samples would be taken for those of one output each."""
    if output.dim() < 2:
        raise InputError(
            WHERE,
            f"a model whose output has the shape {tuple(output.shape)}",
            "(batch, …, outputs)",
            "Keep the last dimension where there is one output, and drop it in the loss.",
        )


class DirectFeedback(ChainRule):
    """What one map delivers to its input: ``Q c``, whatever error arrives at its output.

    Where the input has tokens and the error hasn't, the error enters the mean over tokens. Never reads weights, but for
    their scale.

    Attributes
    ----------
    Q
        Feedback weights, ``(features, r)``; the features of a convolution are all values of its input.
    """

    direct = True
    starts = ("random",)
    unused = ("p_targets", "refresh_every", "fit_every", "clamp", "joint")

    def __init__(
        self,
        map_: Map,
        weight: Tensor,
        features: int,
        output: OutputError,
        config: ChainConfig,
        generator: torch.Generator,
    ) -> None:
        error_dim = len(output.P)
        super().__init__(map_, weight, error_dim, config, generator)
        self.output = output
        drawn = drawn_like(weight, generator, torch.Size((features, error_dim)))
        self._learns_q = config.q_rule == "hebbian"
        self.Q = nn.Parameter(drawn, requires_grad=self._learns_q)

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return ``Q`` transposed."""
        return (self.Q if self._learns_q else self.Q.detach()).t()

    def delivery(self) -> Delivery:
        """Bind the feedback to the forward pass that is under way."""
        return BoundDelivery(self.output.current())


@dataclass(frozen=True)
class BoundDelivery:
    """Delivers the error of one forward pass."""

    call: Call

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Return ``Q c`` in the input's shape, and ``c``'s correlation with the input."""
        error, shape = self.call.error, incoming.input_shape
        # An error of an earlier backward pass, whose graph was retained, isn't this one's.
        if error is None or self.call.backward != current_backward():
            raise InputError(
                WHERE,
                "a backward pass that doesn't begin at the model's output",
                "a loss of that output alone",
            )
        places = _places(shape, incoming.kernel.shape[1])
        shared = error.dim() - 1  # dimensions that have errors of their own: samples, perhaps tokens
        if places[:shared] != error.shape[:-1]:
            raise InputError(
                WHERE,
                f"a layer whose input is {tuple(shape)} under errors for {tuple(error.shape[:-1])}",
                "an input that begins with the same dimensions",
            )
        alike = math.prod(places[shared:])  # tokens that share one error
        error = error.to(incoming.error.dtype).reshape(-1, error.shape[-1]) / alike
        delivered = (error @ incoming.kernel)[:, None].expand(-1, alike, -1).reshape(shape)
        if not incoming.learns:
            return delivered, None
        return delivered, error.t() @ incoming.kept_input().reshape(len(error), alike, -1).sum(1)


def _places(input_shape: torch.Size, features: int) -> torch.Size:
    """Return the dimensions before the features: one for a convolution's input, which is flattened."""
    size = 1
    for split in range(len(input_shape) - 1, -1, -1):
        size *= input_shape[split]
        if size == features and split > 0:
            return input_shape[:split]
    raise InputError(
        WHERE,
        f"an input of shape {tuple(input_shape)}",
        f"{features} values for every sample, as in the example",
    )
