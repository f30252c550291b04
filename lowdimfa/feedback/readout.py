"""Feedback weights that are a readout: their transpose predicts the output from the block's tap."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdimfa.feedback.rules import Errors, HebbianFeedback, LearnedFeedback


class LocalReadout(LearnedFeedback):
    """The linear readout of greedy local learning: ``Q`` predicts the output from the tap, and no error comes in.

    A baseline (Nøkland and Eidnes, 2019; Belilovsky et al., 2020). ``error_dim`` is the task's dimension.
    """

    def __init__(self, features: int, error_dim: int, generator: torch.Generator) -> None:
        super().__init__(features, error_dim, generator)
        self.weights.requires_grad_()  # learned by autograd, with the block

    def predict(self, tapped: Tensor) -> Tensor:
        """Return the readout's output, shape ``(batch, *positions, task_dim)``."""
        return tapped @ self.weights


class ReadoutFeedback(HebbianFeedback):
    """``Q`` is learned as the block's own readout, and its own error joins the broadcast one.

    The transposed ``Q`` predicts the classes from the tap, ``a = softmax(Qᵀ t(h))``. Its error ``ê = a − y`` trains it
    (the Hebbian rule with the block's own error in place of the network's), and what the block is sent is
    ``Q ((1 − s) e + s ê)``. The targets need no transport: with softmax cross-entropy and ``P`` the identity, the one
    component of ``c = e = p − y`` that is negative is that of the target.

    Where ``c = P e`` has fewer numbers than there are classes it doesn't show the target, and the head sends the number
    of the class behind it. ``Q`` is a readout of all classes nevertheless, and ``Pᵀ c``, what ``P`` keeps of the error,
    takes the place of ``e``.

    Beyond the paper. ``s = 1`` is greedy local learning (Nøkland and Eidnes, 2019; Belilovsky et al., 2020); ``s = 0``
    sends the broadcast error alone through a ``Q`` that is a readout's. Between them the block is told what the whole
    network still gets wrong, and learns features that are of use to its own readout (docs/results.md has figures).
    Never reads weights.

    Parameters
    ----------
    own_error
        ``s``, between 0 and 1.
    microbatches
        Parts of a step's batch: the broadcast error is that of the mean over all of them.
    projection
        ``P``, shape ``(r, m)``, where ``r < m``; else None. A class of your own that needs it hands it on.
    """

    needs_targets = True

    def __init__(
        self,
        features: int,
        error_dim: int,
        generator: torch.Generator,
        own_error: float = 0.5,
        microbatches: int = 1,
        projection: Tensor | None = None,
    ) -> None:
        super().__init__(features, error_dim, generator)
        self.own_error = own_error
        self._microbatches = microbatches
        self.projection = projection

    @property
    def received(self) -> int:
        """Numbers per sample that arrive: with the number of the class where the error doesn't show it."""
        return super().received if self.projection is None else len(self.projection) + 1

    def errors(self, tapped: Tensor, error: Tensor) -> Errors:
        """Return the readout's own error, and the mixture of both."""
        if self.projection is None:
            lowest, target = error.min(-1, keepdim=True)
            own = self._own_error(tapped, target, lowest < 0, error)
            return Errors(own, torch.lerp(error, own, self.own_error))
        sent, target = error[..., :-1], error[..., -1:].long().clamp(max=self.weights.shape[-1] - 1)
        own = self._own_error(tapped, target.clamp(min=0), target >= 0, sent)
        return Errors(own, torch.lerp(sent @ self.projection, own, self.own_error))

    def _own_error(self, tapped: Tensor, target: Tensor, learned: Tensor, error: Tensor) -> Tensor:
        """Return the gradient of the step's mean cross-entropy of the readout with respect to its output.

        That of the mean over micro-batches, which count alike: how many targets count in the others, no block knows.
        """
        own = (tapped @ self.weights).softmax(-1)
        own.scatter_add_(-1, target, torch.full_like(own[..., :1], -1.0))
        # Without a negative component there is nothing to learn: an ignored token, or one predicted for certain.
        # Only the error of an ignored one is 0 throughout, and the mean is over the others.
        rows = error.any(-1).sum().clamp(min=1) * self._microbatches
        return own * learned / rows


def with_classes(sent: Tensor, error: Tensor) -> Tensor:
    """Return a projected error with the number of its class behind it; −1 where the error has no negative number.

    Parameters
    ----------
    sent
        ``P e``, shape ``(batch, *positions, r)``.
    error
        ``e`` of softmax cross-entropy, shape ``(batch, *positions, m)``. Its numbers are exact up to 2²⁴ classes.
    """
    lowest, target = error.min(-1, keepdim=True)
    return torch.cat([sent, target.where(lowest < 0, -1).to(sent.dtype)], -1)
