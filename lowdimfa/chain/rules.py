"""Rules by which an error passes a map: what stands in for the transposed weights, and how it learns.

`lowdimfa.rules` names them. `lowdimfa.chain.direct` has the one that replaces the chain by a broadcast.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.function import Delivery, Incoming, run_map
from lowdimfa.chain.maps import Map
from lowdimfa.feedback.projection import orthonormal_rows


class ChainRule(nn.Module):
    """How errors pass one layer; by itself as in backpropagation, through its transposed weights.

    The base of all rules of the chain form; one of your own overrides what it does otherwise. A converted layer maps
    ``h`` to ``W h`` and has a rule of its own, a submodule (an attention has four): parameters that require a gradient
    are trained by the optimiser of the model, and these and buffers are in its ``state_dict``. For every forward pass
    whose input wants an error, `kernel` and then `delivery` are called; in the backward pass `deliver`, once ``δ``, the
    error at the layer's output, has come. The gradient of ``W`` is exact for ``δ`` whatever the rule.

    Parameters
    ----------
    map_
        The kind of map, for shapes and products: `lowdimfa.chain.maps.Map`.
    weight
        Its forward weights ``W``; feedback weights follow their shape, scale, type and device.
    error_dim
        ``r`` of each group.
    config
        How ``Q`` and ``P`` start and learn.
    generator
        Source of the random draws, on the CPU; seeded with the conversion's seed and the layer's name.

    Attributes
    ----------
    error_dim_of_layer
        Whether the rule has an ``r`` for each layer, so that ``error_dims`` means something.
    direct
        Whether the rule delivers the projected error of the model's output; see `lowdimfa.chain.direct`.
    """

    error_dim_of_layer: ClassVar[bool] = False
    direct: ClassVar[bool] = False

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__()

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return the feedback weights in the layout of forward weights, whose first dimension may be another one.

        Here the forward weights themselves. Where it depends on a parameter that requires a gradient, it learns: what
        `deliver` returns beside the error is then its gradient.
        """
        return weight.detach()

    def delivery(self) -> Delivery:
        """Return what will deliver the errors of a forward pass that begins now."""
        return self

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Return the error at the layer's input, in its shape, and the gradient of a kernel that learns, or None.

        Here the whole error is carried through the kernel, and a kernel that learns does as the weights do.

        Parameters
        ----------
        incoming
            The error ``δ``, the layer's input ``h``, the kernel of the forward pass, the exact gradient of ``W``, and
            the products of the map.
        """
        delivered = incoming.map.deliver(incoming.error, incoming.kernel, incoming.input_shape)
        if not incoming.learns:
            return delivered, None
        if incoming.weight_gradient is None:
            return delivered, incoming.correlate(incoming.error)
        return delivered, incoming.weight_gradient.clone()  # two parameters must not share one gradient

    def run(self, map_: Map, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the map; where no error will pass on to the input, with ordinary autograd and nothing else."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return map_.run(x, weight, bias)
        return run_map(map_, x, weight, bias, self.kernel(map_, weight.detach()), self.delivery())


class SignSymmetry(ChainRule):
    """The signs of the forward weights, scaled to their norm (Liao, Leibo and Poggio, 2016; Moskovitz et al., 2018)."""

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return the signs times the root of the mean square of the weights."""
        plain = weight.detach()
        return plain.sign() * plain.square().mean().sqrt()


class FeedbackAlignment(ChainRule):
    """A full random matrix that stays as drawn (Lillicrap et al., 2016)."""

    learned = False

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        start = weight.detach() if config.q_start == "transposed" else drawn_like(weight, generator)
        self.Q = nn.Parameter(map_.as_kernel(start).clone(), requires_grad=self.learned)

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return ``Q`` in the layout of the forward weights."""
        return map_.as_kernel(self.Q)


class KolenPollack(FeedbackAlignment):
    """A full matrix that learns from the weights' own correlation (Kolen and Pollack, 1994; Akrout et al., 2019).

    With the same optimiser and the same decay it converges to the transposed weights.
    """

    learned = True


class LowDimensional(ChainRule):
    """``Q P`` of rank ``r``, never formed: the paper's chain form (arXiv:2502.20580).

    Attributes
    ----------
    Q
        Feedback weights, ``(inputs, r)`` or the kernel of a convolution. Learned, ``Q.grad`` is ``h (P δ)ᵀ``, which is
        also ``(P ΔW)ᵀ``: the cheaper of the two products is computed.
    P
        Error projection, ``(*groups, r, outputs)``, rows near-orthonormal; the identity where ``r`` is full.
    """

    P: Tensor
    error_dim_of_layer = True

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        self.register_buffer("P", _projection(map_, weight, error_dim, generator))
        mixed = map_.combine(self.P, weight.detach())
        if config.q_start == "random":
            mixed = drawn_like(weight, generator, mixed.shape)
        self.Q = nn.Parameter(map_.as_kernel(mixed).clone(), requires_grad=config.q_rule == "hebbian")
        self._p_lr = config.p_lr if config.p_rule == "oja" and error_dim < self.P.shape[-1] else 0.0
        self._p_samples = config.p_samples

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return ``Q`` in the layout of a weight with ``r`` outputs."""
        return map_.as_kernel(self.Q)

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Carry the error through ``P`` and then ``Q``: two thin products."""
        map_, error, rows = incoming.map, incoming.error, self.P.to(incoming.error.dtype)
        projected = map_.project(error, rows)
        delivered = map_.deliver(projected, incoming.kernel, incoming.input_shape)
        gradient = None
        if incoming.learns:
            weight_gradient = incoming.weight_gradient
            is_wide = map_.count(error) > rows.shape[-1]
            if is_wide and weight_gradient is not None:
                gradient = map_.combine(rows, weight_gradient)
            else:
                gradient = incoming.correlate(projected)
        if self._p_lr and self.training:
            errors, seen = (map_.vectors(one, self._p_samples) for one in (error, projected))
            turn_towards(self.P, errors, seen, self._p_lr)
        return delivered, gradient

    def extra_repr(self) -> str:
        """Return the error dimension."""
        return f"error_dim={self.P.shape[-2]}"


@torch.no_grad()
def turn_towards(projection: Tensor, errors: Tensor, seen: Tensor, rate: float) -> None:
    """Turn the rows of ``P`` towards the errors' principal directions, in place, by one step of Oja's subspace rule.

    ``ΔP = η P C (I − PᵀP)`` with ``C = EᵀE / trace`` of the errors ``E``, written so that nothing is as large as
    ``C``: ``(E Pᵀ)ᵀ (E − E PᵀP)``. Errors that are zero, or that aren't finite, change nothing.

    Parameters
    ----------
    projection
        ``P``, shape ``(*groups, r, width)``.
    errors
        ``E``, shape ``(*groups, vectors, width)``.
    seen
        ``E Pᵀ``, shape ``(*groups, vectors, r)``.
    rate
        ``η``.
    """
    at_least_single = torch.promote_types(errors.dtype, torch.float32)
    trace = torch.linalg.vector_norm(errors, dim=(-2, -1), keepdim=True, dtype=at_least_single).square()
    usable = torch.isfinite(trace) & (trace > 0)
    # The thin factors are scaled and blanked, not their product, which may be many times as large.
    share = torch.where(usable, seen * (rate / trace), 0.0).to(errors.dtype)
    missed = torch.where(usable, errors - seen @ projection.to(errors.dtype), 0.0)
    projection += (share.mT @ missed).to(projection.dtype)


def _projection(map_: Map, weight: Tensor, error_dim: int, generator: torch.Generator) -> Tensor:
    width = len(weight) // map_.groups
    drawn = torch.stack([orthonormal_rows(error_dim, width, generator) for _ in range(map_.groups)])
    return (drawn if weight.dim() > 2 else drawn[0]).to(weight)


def drawn_like(weight: Tensor, generator: torch.Generator, shape: torch.Size | None = None) -> Tensor:
    """Draw values at the scale of a weight; where it is all zeros, at that of one with outputs of unit variance."""
    scale = float(weight.detach().double().square().mean().sqrt()) or weight[0].numel() ** -0.5
    return (torch.randn(shape or weight.shape, generator=generator) * scale).to(weight)
