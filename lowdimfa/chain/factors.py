"""The second generation of the paper's rule: ``P`` and ``Q`` are two factors of the weights, and both are learned.

After arXiv:2502.20580, version 4.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.function import Incoming, current_backward, once_differentiable, without_autocast
from lowdimfa.chain.maps import Map
from lowdimfa.chain.rules import ChainRule
from lowdimfa.chain.starts import clamp_of, clamped, drawn_like, drawn_seed, start_rows, svd_factors


class Local(ChainRule):
    """``Q P δ``, whose factors learn from the weights' own gradient through the other factor.

    ``ΔQ ∝ (P ∇W)ᵀ`` and ``ΔP ∝ (∇W Q)ᵀ``: as ``(Q P)ᵀ`` were a layer's weights, trained in place of ``W`` by the same
    gradient. Reads weights at the start (with ``start="random"`` never), and again at refreshes if there are any.

    Attributes
    ----------
    Q
        Feedback weights, ``(inputs, r)`` or the kernel of a convolution.
    P
        Error projection, ``(*groups, r, outputs)``.
    """

    error_dim_of_layer = True
    learns_with_weights = True
    starts = ("svd", "random", "transposed")
    unused: ClassVar[tuple[str, ...]] = ("q_rule", "p_rule", "p_lr", "p_samples", "p_targets", "fit_every")

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        self._seed = drawn_seed(generator)
        start, plain = config.start or self.starts[0], weight.detach()
        error_dim = min(
            error_dim, map_.matrix(plain).shape[-1]
        )  # a higher rank than a weight's no SVD refreshes
        if start == "svd":
            rows, kernel = svd_factors(map_, plain, error_dim, self._seed)
        else:
            rows = start_rows(map_, weight, error_dim, start, generator)
            kernel = map_.combine(rows, plain)
            if start == "random":
                kernel = drawn_like(weight, generator, kernel.shape)
        self.P, self.Q = nn.Parameter(rows), nn.Parameter(map_.as_kernel(kernel).clone())
        self._kernel_shape = kernel.shape
        self._refresh_every = config.refresh_passes
        self._passes = 0  # backward passes in training mode since P and Q started or were refreshed
        self._all_passes = 0  # in any mode, from the start
        self._counted = -1  # the latest of them
        self.bound = clamp_of(map_, config)

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return the kernel of ``Q`` and ``P`` as one vector, so that both get a gradient; refreshed if that is due."""
        if self._refresh_every is not None and self._passes >= self._refresh_every:
            self._refresh(map_, weight)
        return _packed(map_.as_kernel(self.Q), self.P)

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Carry the error through ``P`` and then ``Q``: two thin products."""
        self._count()
        kernel, rows = self.unpacked(incoming.kernel)
        projected = incoming.map.project(incoming.error, rows)
        delivered = incoming.map.deliver(projected, kernel, incoming.input_shape)
        return delivered, self._gradient(incoming, rows, kernel, projected) if incoming.learns else None

    def _gradient(self, incoming: Incoming, rows: Tensor, kernel: Tensor, projected: Tensor) -> Tensor:
        gradients = incoming.q_gradient(rows, projected, kernel.shape), incoming.p_gradient(rows, kernel)
        return clamped(_packed(*gradients), self.bound)

    def _count(self) -> None:
        """Count the backward pass under way, once however often the layer runs in it."""
        current = current_backward()
        if current != self._counted:
            self._passes += self.training
            self._all_passes += 1
            self._counted = current

    def unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kernel of ``Q``, and ``P``."""
        kernel, rows = torch.split(packed, [self.Q.numel(), self.P.numel()])
        return kernel.view(self._kernel_shape), rows.view(self.P.shape)

    @torch.no_grad()
    def _refresh(self, map_: Map, weight: Tensor) -> None:
        with without_autocast(weight.device.type):
            rows, kernel = svd_factors(map_, weight, self.P.shape[-2], self._seed)
        self.P.copy_(rows)
        self.Q.copy_(map_.as_kernel(kernel))
        self._passes = 0

    def get_extra_state(self) -> Tensor:
        """Return what a resumed run needs beside ``P`` and ``Q``: when the next refresh, and the next fit, is due."""
        return torch.tensor([self._passes, self._all_passes])

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self._passes, self._all_passes = state.tolist()

    def extra_repr(self) -> str:
        """Return the error dimension."""
        return f"error_dim={self.P.shape[-2]}"


class Normative(Local):
    """``Q P δ``, whose factors learn to be the weights: by the gradient of ``½ ‖(Q P)ᵀ − W‖²``.

    Reads weights at every step at which it learns, and at the start and at refreshes: low-rank backpropagation, seen
    through a factorisation. The gradient needs products with ``W`` alone, and no matrix of its size.
    """

    learns_with_weights = False
    unused = ("q_rule", "p_rule", "p_lr", "p_samples", "p_targets")

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        self._fit_every = config.fit_every

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return the packed factors; their gradient is that of the objective where learning is due, none elsewhere."""
        packed = super().kernel(map_, weight)
        if (self._all_passes + 1) % self._fit_every or not packed.requires_grad:
            return packed.detach()
        fitted: Tensor = Fit.apply(packed, weight, map_, self)  # type: ignore[no-untyped-call]
        return fitted

    def _gradient(self, incoming: Incoming, rows: Tensor, kernel: Tensor, projected: Tensor) -> Tensor:
        """Return zeros, that take no memory: the objective doesn't depend on the error."""
        return incoming.kernel.new_zeros(()).expand(incoming.kernel.shape)


class Fit(torch.autograd.Function):
    """The identity on packed factors, whose gradient is that of ``½ ‖Pᵀ K − W‖²``, whatever arrives."""

    @staticmethod
    def forward(packed: Tensor, weight: Tensor, map_: Map, rule: Normative) -> Tensor:
        """Return the factors."""
        return packed.view_as(packed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep factors and weights."""
        packed, weight, ctx.map, ctx.rule = inputs
        ctx.save_for_backward(packed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient, ``P (Pᵀ K − W)`` and ``K (Pᵀ K − W)ᵀ``, without forming what is in brackets."""
        packed, weight = ctx.saved_tensors
        with without_autocast(packed.device.type):
            kernel, rows = ctx.rule.unpacked(packed)
            inner, matrix = ctx.map.matrix(kernel), ctx.map.matrix(weight)
            kernel_gradient = (rows @ rows.mT) @ inner - rows @ matrix
            rows_gradient = (inner @ inner.mT) @ rows - inner @ matrix.mT
            gradient = clamped(_packed(kernel_gradient, rows_gradient), ctx.rule.bound)
        return gradient, None, None, None


def _packed(kernel: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([kernel.flatten(), rows.flatten()])
