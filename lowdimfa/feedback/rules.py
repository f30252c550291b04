"""Rules by which a block learns its feedback weights ``Q`` (shape ``(features, error_dim)``).

Within a step ``Q`` is constant, so the order in which a step's messages arrive changes nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lowdimfa.feedback.kept import Kept
from lowdimfa.feedback.projection import PRule, WholeError


class Errors(NamedTuple):
    """Two errors of shape ``(batch, *positions, error_dim)``.

    Attributes
    ----------
    learned
        What ``Q`` learns from.
    delivered
        What ``Q`` delivers at the tap.
    """

    learned: Tensor
    delivered: Tensor


class QRule(Kept):
    """The feedback weights of a block and how they learn; by itself fixed feedback, ``Q`` that stays as drawn.

    With ``error_dim`` the task's that is direct feedback alignment. Never reads weights.

    The base of all rules for ``Q``; one of your own overrides what it does otherwise. There is one for each site at which
    the broadcast error enters: the end of a block, or of each of its layers. It sees nothing but what is local there:

    - for every micro-batch, once its error has come, `errors`, `accumulate` and `deliver`, in this order;
    - where `probed`, for the first micro-batch of every ``probe_every`` steps, before or after these,
      `accumulate_probe`;
    - once per optimiser step, after its last micro-batch, `step`; and if `trained_by_optimizer` the block's optimiser
      then applies ``weights.grad`` and clears it.

    `errors` and `deliver` are called too where nothing is learned, and change nothing. No method records gradients. What
    they draw from the default generators is seeded with site, micro-batch and step.

    Parameters
    ----------
    features
        Features of the block's tap, ``n_l``.
    error_dim
        Numbers per sample in the broadcast error, ``r``.
    generator
        Source of the initial weights, ``Normal(0, 1 / r)``; seeded with the run's seed and the site.

    Attributes
    ----------
    weights
        ``Q``, shape ``(features, error_dim)``.
    trained_by_optimizer
        Whether ``weights.grad`` is the rule's update, to be applied by the block's optimiser: the same kind of
        optimiser for ``Q`` as for the forward weights.
    probed
        Whether the rule learns from probes.
    needs_targets
        Whether the rule needs the targets, as `lowdimfa.feedback.readout.ReadoutFeedback` does: it is refused where an
        error has none.
    """

    trained_by_optimizer: ClassVar[bool] = False
    probed: ClassVar[bool] = False
    needs_targets: ClassVar[bool] = False
    weights: nn.Parameter

    def __init__(self, features: int, error_dim: int, generator: torch.Generator) -> None:
        drawn = torch.randn(
            features, error_dim, generator=generator, dtype=torch.float32, device=generator.device
        )
        drawn /= math.sqrt(error_dim)
        self.weights = nn.Parameter(drawn, requires_grad=False)

    @property
    def received(self) -> int:
        """Numbers per sample that arrive."""
        return self.weights.shape[-1]

    def start_on_places(self) -> None:
        """Take in, before the first step, that the tap has features for every pixel or token."""

    def follow(self, projection: Tensor) -> None:
        """Take in ``P``, shape ``(error_dim, width)``, as it is from this step on; the same may come more than once."""

    def errors(self, tapped: Tensor, error: Tensor) -> Errors:
        """Return what a broadcast error comes to at this block: here itself, for both uses.

        Parameters
        ----------
        tapped
            The tap's value ``t(h)``, shape ``(batch, *positions, features)``.
        error
            The broadcast error ``c``, shape ``(batch, *positions, error_dim)``: of the mean loss over the whole step.
        """
        return Errors(error, error)

    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        """Take in the tap's value and the error that ``Q`` learns from, of one micro-batch; ``Q`` stays.

        What micro-batches add up is a sum, in ``weights.grad`` or in `pending`.
        """

    def deliver(self, error: Tensor) -> Tensor:
        """Return ``Q c`` for every sample, shape ``(batch, *positions, features)``."""
        return error @ self.weights.detach().t()

    def accumulate_probe(self, moved: Tensor, response: Tensor) -> None:
        """Take in one probe.

        Parameters
        ----------
        moved
            The tap's change by the block's own noise, shape ``(batch, *positions, features)``.
        response
            The projected change of the output, ``P Δy``, shape ``(batch, *positions, error_dim)``.
        """

    def pending(self) -> Tensor | None:
        """Return what the step's micro-batches have added up outside of ``weights.grad``, in the shape of ``Q``, or None.

        Replicas of a block add this up before `step`, each of which has seen some of the micro-batches.
        """
        return None

    def set_pending(self, total: Tensor) -> None:
        """Put the sum over all replicas in place of what `pending` returned."""

    def step(self) -> None:
        """Apply what was accumulated, unless the block's optimiser does."""


class TransposedFeedback(QRule):
    """``Q = Pᵀ``, of ``P`` as the head has it: what a block is sent is the error itself, seen through ``P``.

    The rule ``fixed`` where ``Q`` starts as the identity. Never reads weights. A checkpoint has ``P`` once, in the head's
    part.

    Parameters
    ----------
    projection
        ``P`` before the first step. Where that carries the whole error, nothing is kept, whatever it learns.
    """

    def __init__(self, projection: PRule) -> None:
        self.error_dim, columns = projection.weights.shape
        self._whole = isinstance(projection, WholeError) or columns == self.error_dim
        drawn = (
            torch.empty(self.error_dim, 0, dtype=torch.float32, device="cpu")
            if self._whole
            else projection.weights.t().contiguous()
        )
        self.weights = nn.Parameter(drawn, requires_grad=False)

    @property
    def received(self) -> int:
        """Numbers per sample that arrive."""
        return self.error_dim

    def follow(self, projection: Tensor) -> None:
        """Take in another ``P``."""
        if not self._whole:
            self.weights.data.copy_(projection.t())

    def deliver(self, error: Tensor) -> Tensor:
        """Return ``Pᵀ c``."""
        return error if self._whole else super().deliver(error)


class LearnedFeedback(QRule):
    """Feedback weights that the block's optimiser trains, with its rate and weight decay.

    ``Q`` starts at the scale of forward weights, ``Normal(0, 1 / n_l)``, or at zero on a tap with a weight for every
    pixel. An optimiser such as Adam sees only the direction of what ``Q`` delivers: the noise of thousands of random
    weights drowns what is learned for hundreds of steps, while from zero the Hebbian rule loses accuracy on vectors
    and residual streams (docs/negative-results.md has the figures).
    """

    trained_by_optimizer = True

    def __init__(self, features: int, error_dim: int, generator: torch.Generator) -> None:
        super().__init__(features, error_dim, generator)
        self.weights.data *= math.sqrt(error_dim / features)

    def start_on_places(self) -> None:
        """Start at zero."""
        self.weights.data.zero_()


class HebbianFeedback(LearnedFeedback):
    """Kolen–Pollack: ``ΔQ = −η t(h) cᵀ − λ Q``, the forward weights' own correlation and decay.

    ``Q`` thereby converges to the forward weights seen through ``P`` (arXiv:2502.20580, the rule for learning ``Q``).
    Never reads weights.
    """

    def accumulate(self, tapped: Tensor, error: Tensor) -> None:
        """Add ``t(h)ᵀ c`` to the gradient of ``Q``."""
        correlation = _correlate(tapped.flatten(0, -2), error.flatten(0, -2))
        if self.weights.grad is None:
            self.weights.grad = correlation
        else:
            self.weights.grad += correlation


class ProbedFeedback(HebbianFeedback):
    """The Hebbian rule, drawn by probes towards the mean Jacobian of the output, seen through ``P``.

    For noise ``ξ`` on the tap and the response ``c_probe = P Δy`` of the output, ``ξᵀ c_probe / Σ ξ²`` estimates the
    Jacobian without bias, by forward passes only (Lansdell, Prakash and Kording, ICLR 2020; Akrout et al., NeurIPS
    2019). Each probe moves ``Q`` a small part ``1 − β`` of the way to its estimate; between probes ``Q`` learns the
    Hebbian way. Beyond the paper: the correlation is there from the first step and hardly noisy, the Jacobian says
    what it misses, and together they do better than either (docs/negative-results.md has probes alone). Never reads
    weights: these pass on the noise.

    Parameters
    ----------
    probe_decay
        What a probe leaves of ``Q``, ``β``.
    """

    probed = True

    def __init__(
        self, features: int, error_dim: int, generator: torch.Generator, probe_decay: float = 0.99
    ) -> None:
        super().__init__(features, error_dim, generator)
        self.probe_decay = probe_decay
        self._estimates: list[Tensor] = []

    def accumulate_probe(self, moved: Tensor, response: Tensor) -> None:
        """Keep one estimate of the mean Jacobian for the step's end."""
        moved, response = moved.flatten(0, -2), response.flatten(0, -2)
        variance = moved.square().mean().clamp_min(torch.finfo(moved.dtype).tiny)  # 0 under a dead block
        self._estimates.append(_correlate(moved, response) / variance / len(moved))

    def pending(self) -> Tensor | None:
        """Return what the step's probe has found, of the shape of ``Q``; None without one, or before it."""
        return self._estimates[-1] if self._estimates else None

    def set_pending(self, total: Tensor) -> None:
        """Put an estimate in place of the step's own: it may come from another replica of the block."""
        self._estimates = [total.clone()]

    def step(self) -> None:
        """Draw ``Q`` towards the step's estimates; the correlation is applied by the block's optimiser."""
        for estimate in self._estimates:
            self.weights.data.mul_(self.probe_decay).add_(estimate, alpha=1 - self.probe_decay)
        self._estimates.clear()


def _correlate(features: Tensor, error: Tensor) -> Tensor:
    """Return ``featuresᵀ error``: several times faster on a CPU than that product as it is written."""
    return (error.t() @ features).t().contiguous()
