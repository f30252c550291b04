"""Rules by which an error passes a map: what stands in for the transposed weights, and how it learns.

`lowdimfa.rules` names them. `lowdimfa.chain.direct` has the one that replaces the chain by a broadcast.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowdimfa.chain.config import ChainConfig, Start
from lowdimfa.chain.function import Delivery, Incoming, run_map, without_autocast
from lowdimfa.chain.maps import Map
from lowdimfa.chain.oja import Drive, Oja
from lowdimfa.chain.starts import clamp_of, clamped, drawn_like, start_rows


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
        How ``Q`` and ``P`` start and learn; a ``start`` of None is the rule's own.
    generator
        Source of the random draws, on the CPU; seeded with the conversion's seed and the layer's name.

    Attributes
    ----------
    error_dim_of_layer
        Whether the rule has an ``r`` for each layer, so that ``error_dims`` means something.
    direct
        Whether the rule delivers the projected error of the model's output; see `lowdimfa.chain.direct`.
    starts
        The values of ``start`` that it allows, its own first.
    unused
        Names of settings that it refuses, since it would leave them unused.
    learns_with_weights
        Whether the kernel learns by what the layer's weights learn by, so that it stays as it is where they are frozen.
    """

    error_dim_of_layer: ClassVar[bool] = False
    direct: ClassVar[bool] = False
    starts: ClassVar[tuple[Start, ...]] = ("random", "transposed", "svd")
    unused: ClassVar[tuple[str, ...]] = ()
    learns_with_weights: ClassVar[bool] = False

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
        kernel = self.kernel(map_, weight.detach())
        if self.learns_with_weights and not weight.requires_grad:
            kernel = kernel.detach()
        return run_map(map_, x, weight, bias, kernel, self.delivery())


OF_FACTORS = (
    "q_rule",
    "p_rule",
    "p_lr",
    "p_samples",
    "p_targets",
    "refresh_every",
    "fit_every",
    "clamp",
    "joint",
)
"""Settings that only feedback of low rank has a use for."""


class Backpropagation(ChainRule):
    """The transposed weights, by the same code as all other rules. Reads weights at every step."""

    unused = ("start", *OF_FACTORS)


class SignSymmetry(ChainRule):
    """The signs of the forward weights, scaled to their norm (Liao, Leibo and Poggio, 2016; Moskovitz et al., 2018).

    Reads the signs of the weights at every step.
    """

    unused = ("start", *OF_FACTORS)

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return the signs times the root of the mean square of the weights."""
        plain = weight.detach()
        return plain.sign() * plain.square().mean().sqrt()


class FeedbackAlignment(ChainRule):
    """A full random matrix that stays as drawn (Lillicrap et al., 2016). Never reads weights, but for their scale.

    With ``start="transposed"`` it reads them at the start.
    """

    learned = False
    starts = ("random", "transposed")
    unused = OF_FACTORS

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        start = weight.detach() if config.start == "transposed" else drawn_like(weight, generator)
        self.Q = nn.Parameter(map_.as_kernel(start).clone(), requires_grad=self.learned)

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return ``Q`` in the layout of the forward weights."""
        # What is fixed stays so, also where somebody lets all parameters of a model require gradients.
        return map_.as_kernel(self.Q if self.learned else self.Q.detach())


class KolenPollack(FeedbackAlignment):
    """A full matrix that learns from the weights' own correlation (Kolen and Pollack, 1994; Akrout et al., 2019).

    With the same optimiser and the same decay it converges to the transposed weights. Never reads them, as
    `FeedbackAlignment`.
    """

    learned = True
    learns_with_weights = True


class LowDimensional(ChainRule):
    """``Q P`` of rank ``r``, never formed: the paper's chain form, first generation (arXiv:2502.20580, v1 to v3).

    ``Q`` learns by Hebb's rule, ``P`` by Oja's. Reads weights at most at the start: with ``start="random"`` never, but
    for their scale.

    Attributes
    ----------
    Q
        Feedback weights, ``(inputs, r)`` or the kernel of a convolution. Learned, ``Q.grad`` is ``h (P δ)ᵀ``, which is
        also ``(P ΔW)ᵀ``: the cheaper of the two products is computed.
    P
        Error projection, ``(*groups, r, outputs)``, rows near-orthonormal; the identity where ``r`` is full, unless it
        starts at the weights' singular vectors.
    """

    P: Tensor
    Q: Tensor
    error_dim_of_layer = True
    learns_with_weights = True
    unused: ClassVar[tuple[str, ...]] = ("refresh_every", "fit_every")

    def __init__(
        self,
        map_: Map,
        weight: Tensor,
        error_dim: int,
        config: ChainConfig,
        generator: torch.Generator,
        drive: Drive = "errors",
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        start = config.start or self.starts[0]
        self.register_buffer("P", start_rows(map_, weight, error_dim, start, generator))
        mixed = map_.combine(self.P, weight.detach())
        if start == "random":
            mixed = drawn_like(weight, generator, mixed.shape)
        self._learns_q = config.q_rule == "hebbian"
        self.Q = nn.Parameter(map_.as_kernel(mixed).clone(), requires_grad=self._learns_q)
        learns_p = config.p_rule != "fixed" and self.P.shape[-2] < self.P.shape[-1]
        self._oja = Oja(config, drive) if learns_p else None
        self._p_samples = config.p_samples
        self._clamp = clamp_of(map_, config)

    @property
    def learns_p(self) -> bool:
        """Whether there is anything for ``P`` to learn, and a rule by which it does."""
        return self._oja is not None

    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Return ``Q`` in the layout of a weight with ``r`` outputs."""
        return map_.as_kernel(self.Q if self._learns_q else self.Q.detach())

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        """Carry the error through ``P`` and then ``Q``: two thin products."""
        map_, error, rows = incoming.map, incoming.error, self.P.to(incoming.error.dtype)
        projected = map_.project(error, rows)
        delivered = map_.deliver(projected, incoming.kernel, incoming.input_shape)
        gradient = None
        if incoming.learns:
            gradient = clamped(incoming.q_gradient(rows, projected, incoming.kernel.shape), self._clamp)
        stays = self._learns_q and not incoming.learns  # as where the weights are frozen: P belongs to Q
        if self._oja is not None and self.training and not stays:
            errors, seen = (map_.vectors(one, self._p_samples) for one in (error, projected))
            self._oja.turn(self.P, errors, seen)
        return delivered, gradient

    def extra_repr(self) -> str:
        """Return the error dimension."""
        return f"error_dim={self.P.shape[-2]}"


class Follow(LowDimensional):
    """``Q`` takes the step that was applied to ``W``, seen through a ``P`` that stays: ``ΔQ = (P ΔW)ᵀ``.

    Whatever the optimiser, its decay and the state that it keeps, ``Q − (P W)ᵀ`` stays what it was at the start:
    nothing. Adam breaks this for a ``Q`` of its own, since it scales each element of ``Q`` and ``W`` differently. Reads
    weights at the start, later only their steps, here as the difference of ``P W`` between two forward passes. Beyond
    the paper.

    Attributes
    ----------
    seen
        ``P W`` of the latest forward pass with gradients.
    """

    seen: Tensor
    starts = ("transposed", "svd")
    unused = ("q_rule", "p_rule", "p_lr", "p_samples", "p_targets", "refresh_every", "fit_every", "clamp")

    def __init__(
        self, map_: Map, weight: Tensor, error_dim: int, config: ChainConfig, generator: torch.Generator
    ) -> None:
        super().__init__(map_, weight, error_dim, config, generator)
        self._oja = None
        start = self.Q.detach()
        del self.Q
        self.register_buffer("Q", start)
        self.register_buffer("seen", map_.combine(self.P, weight.detach()))

    @torch.no_grad()
    def kernel(self, map_: Map, weight: Tensor) -> Tensor:
        """Take the step of the weights since the last forward pass, and return ``Q``."""
        with without_autocast(weight.device.type):
            mixed = map_.combine(self.P, weight)
        # Not in place: a backward pass may need the former.
        followed = self.Q + map_.as_kernel(mixed - self.seen)
        # What a transform of torch.func wraps is nothing outside of it, and the next pass takes the step from here again.
        if not torch._C._are_functorch_transforms_active():
            self.Q, self.seen = followed, mixed
        return map_.as_kernel(followed)
