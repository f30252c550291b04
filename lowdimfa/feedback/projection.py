"""The error projection ``P``, its learning, and how much of the error it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.feedback.kept import Kept
from lowdimfa.rules import P_RULES


def orthonormal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return ``rows <= width`` random orthonormal rows, shape ``(rows, width)``; the identity where both are equal.

    In float32 on the generator's device, whatever torch's defaults are.
    """
    if rows == width:
        return torch.eye(width, dtype=torch.float32, device=generator.device)
    drawn = torch.randn(width, rows, generator=generator, dtype=torch.float32, device=generator.device)
    columns: Tensor = torch.linalg.qr(drawn)[0]
    return columns.t().contiguous()


class PRule(Kept):
    """The head's projection ``c = e Pᵀ`` of the output error ``e``, and how ``P`` learns: by itself not at all.

    The base of all rules for ``P``; one of your own overrides what it does otherwise. There is one, in the head, which
    calls for every micro-batch, in order, `accumulate` and `project`, and once per optimiser step, after the last
    micro-batch, `step`. Within a step ``P`` is constant. No method records gradients; random draws are seeded with the
    micro-batch, or the step.

    Parameters
    ----------
    task_dim
        Width of the output, ``m``.
    error_dim
        Width of the broadcast error, ``r <= m``. At ``r = m`` the projection starts as the identity.
    generator
        Source of the initial orthonormal rows.

    Attributes
    ----------
    weights
        ``P``, float32, shape ``(error_dim, task_dim)``, rows near-orthonormal. Errors are taken in the same precision.
    """

    def __init__(self, task_dim: int, error_dim: int, generator: torch.Generator) -> None:
        self.weights = orthonormal_rows(error_dim, task_dim, generator)

    def project(self, error: Tensor) -> Tensor:
        """Return ``c``, what is broadcast.

        Called too where nothing is learned, and on a probe with the output's change: it changes nothing.

        Parameters
        ----------
        error
            ``e``, the gradient of the step's mean loss with respect to the output, ``(batch, *positions, task_dim)``.

        Returns
        -------
        Tensor
            float32, shape ``(batch, *positions, error_dim)``; each sample's on its own error.
        """
        return error.float() @ self.weights.t()

    def accumulate(self, error: Tensor) -> None:
        """Take in the output error of one micro-batch, shape ``(batch, *positions, task_dim)``."""

    def step(self) -> None:
        """Change ``weights``, in place, by what was accumulated in the optimiser step."""

    def explained_energy(self, error: Tensor) -> float:
        """Return the share of the error's energy that lies in the row space of ``P``, between 0 and 1."""
        rows = error.float().flatten(0, -2)
        basis, _ = torch.linalg.qr(self.weights.t())
        return float(
            (rows @ basis).square().sum() / rows.square().sum().clamp_min(torch.finfo(rows.dtype).tiny)
        )


class WholeError(PRule):
    """The identity, ``c = e``: what ``fixed`` and ``pca`` are at ``r = m``, where there is nothing to choose.

    No ``(m, m)`` matrix is made or multiplied by, which for the outputs of a large vocabulary would outweigh the network;
    unless a checkpoint brings one that another rule has turned.

    Attributes
    ----------
    weights
        Of shape ``(m, 0)`` as long as this is the identity.
    """

    def __init__(self, task_dim: int) -> None:
        self.weights = torch.empty(task_dim, 0, dtype=torch.float32, device="cpu")

    @property
    def is_identity(self) -> bool:
        """Whether nothing else was restored."""
        return self.weights.shape[1] == 0

    def restore(self, weights: Tensor) -> None:
        """Take in a ``P`` of shape ``(m, m)``."""
        if not torch.equal(weights, torch.eye(len(weights), dtype=weights.dtype, device=weights.device)):
            self.weights = weights.to(self.weights.device, copy=True)

    def project(self, error: Tensor) -> Tensor:
        """Return the error itself, or what a restored ``P`` makes of it."""
        return error.float() if self.is_identity else super().project(error)

    def explained_energy(self, error: Tensor) -> float:
        """Return 1, or 0 where there is no error."""
        return float(error.any())


def _countable(error: Tensor) -> Tensor:
    """Return errors as rows; zeros where the trace of their correlation isn't finite, which what it is added to keeps."""
    rows = error.float().flatten(0, -2)
    return torch.where(rows.square().sum().isfinite(), rows, 0.0)


class OjaProjection(PRule):
    """Oja's subspace rule ``ΔP = η P C (I − Pᵀ P)`` on the error's correlation ``C`` (arXiv:2502.20580).

    By it the rows of ``P`` come to span the principal directions of the error.

    Parameters
    ----------
    p_lr
        ``η`` for a correlation normalised to trace 1, which makes the rule independent of the scale of the error.
    """

    def __init__(self, task_dim: int, error_dim: int, generator: torch.Generator, p_lr: float = 0.1) -> None:
        super().__init__(task_dim, error_dim, generator)
        self.p_lr = p_lr
        self._correlation = torch.zeros(task_dim, task_dim, dtype=torch.float32, device="cpu")

    def accumulate(self, error: Tensor) -> None:
        """Add the correlation of the errors of one micro-batch."""
        rows = _countable(error)
        self._correlation += rows.t() @ rows

    def step(self) -> None:
        """Apply Oja's rule to the errors of one optimiser step."""
        total = self._correlation.trace()
        projected = self.weights @ (self._correlation / total)
        change = projected - projected @ self.weights.t() @ self.weights
        # No branch, which would wait for the device.
        counts = (total >= torch.finfo(total.dtype).tiny) & total.isfinite()
        self.weights += self.p_lr * torch.where(counts, change, 0.0)
        self._correlation.zero_()


class PcaProjection(PRule):
    """Principal directions: eigenvectors of a running correlation of the error, which span the best ``r`` dimensions.

    Beyond the paper, whose subspace rule (`OjaProjection`) approaches the same span by small steps. A refresh turns the
    new basis so that its rows are as near to the old ones as can be (orthogonal Procrustes; Schönemann, 1966), since
    blocks have learned ``Q`` against these: the span is new, the meaning of the numbers of ``c`` goes on. So the basis
    is the same whatever the order and signs of the eigenvectors.

    A refresh solves an ``m × m`` eigenproblem in double precision on the processor, ``O(m³)``; a step adds
    ``O(batch m²)``, as Oja's rule does. It is for ``r < m``; else `WholeError` takes its place.

    Parameters
    ----------
    p_decay
        What a step leaves of the running correlation, from 0 to below 1.
    p_every
        Steps between refreshes; before the first of these there is one after the steps 1, 2, 4, 8, ….
    """

    kept = ("running", "steps")

    def __init__(
        self,
        task_dim: int,
        error_dim: int,
        generator: torch.Generator,
        p_decay: float = 0.98,
        p_every: int = 25,
    ) -> None:
        super().__init__(task_dim, error_dim, generator)
        if not 0 <= p_decay < 1 or p_every < 1:
            raise ValueError(f"p_decay is {p_decay} and p_every {p_every}; from 0 to below 1, and at least 1")
        self.p_decay, self.p_every = p_decay, p_every
        self.running = torch.zeros(task_dim, task_dim, dtype=torch.float32, device="cpu")
        self._correlation = torch.zeros_like(self.running)
        self.steps = 0

    def accumulate(self, error: Tensor) -> None:
        """Add the correlation of the errors of one micro-batch."""
        rows = _countable(error)
        self._correlation += rows.t() @ rows

    def step(self) -> None:
        """Let the running correlation follow, and refresh ``P`` when it is time."""
        self.running.mul_(self.p_decay)
        # No element of a correlation is above its trace. One that overflows would stay for good. No branch, as above.
        stays_finite = (self.running.trace() + self._correlation.trace()).isfinite()
        self.running.add_(torch.where(stays_finite, self._correlation, 0.0))
        self._correlation.zero_()
        self.steps += 1
        early = self.steps < self.p_every and self.steps.bit_count() == 1
        if early or self.steps % self.p_every == 0:
            self._refresh()

    def _refresh(self) -> None:
        running, old = (value.to("cpu", torch.float64) for value in (self.running, self.weights))
        if not running.isfinite().all() or not running.any():
            return
        leading = torch.linalg.eigh(running)[1][:, -len(old) :].t()
        left, _, right = torch.linalg.svd(old @ leading.t())
        self.weights.copy_(left @ right @ leading)


def projected_by(rule: PRule, error: Tensor) -> Tensor:
    """Return what a rule makes of an error.

    Raises
    ------
    InputError
        It is something else than it is to be.
    """
    found: object = rule.project(error)
    shape = (*error.shape[:-1], len(rule.weights))
    if not isinstance(found, Tensor) or found.shape != shape or found.dtype != torch.float32:
        returned = (
            f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        )
        name = P_RULES.name_of(type(rule))
        raise InputError(
            P_RULES.key,
            f"{name!r}, which makes {returned} of an error of shape {tuple(error.shape)}",
            f"torch.float32 of shape {shape}",
        )
    return found
