"""The error projection ``P``, its learning, and how much of the error it keeps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PRule = Literal["fixed", "oja"]


def orthonormal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return ``rows <= width`` random orthonormal rows, shape ``(rows, width)``; the identity where both are equal."""
    if rows == width:
        return torch.eye(width)
    columns: Tensor = torch.linalg.qr(torch.randn(width, rows, generator=generator))[0]
    return columns.t().contiguous()


class ErrorProjection:
    """The head's projection ``c = e Pᵀ`` of the output error to ``error_dim`` numbers per sample.

    Parameters
    ----------
    task_dim
        Width of the output, ``m``.
    error_dim
        Width of the broadcast error, ``r <= m``. At ``r = m`` the projection starts as the identity.
    rule
        ``fixed``, or ``oja``: Oja's subspace rule ``ΔP = η P C (I − Pᵀ P)`` on the error's correlation ``C``, by
        which the rows of ``P`` come to span the principal directions of the error (arXiv:2502.20580).
    learning_rate
        ``η`` for a correlation normalised to trace 1, which makes the rule independent of the scale of the error.
    generator
        Source of the initial orthonormal rows.

    Attributes
    ----------
    weights
        ``P``, float32, shape ``(error_dim, task_dim)``, rows near-orthonormal. Errors are taken in the same precision.
    """

    def __init__(
        self, task_dim: int, error_dim: int, rule: PRule, learning_rate: float, generator: torch.Generator
    ) -> None:
        self.weights = orthonormal_rows(error_dim, task_dim, generator)
        self.rule: PRule = rule
        self.learning_rate = learning_rate
        self._correlation = torch.zeros(task_dim, task_dim) if rule == "oja" else None

    def project(self, error: Tensor) -> Tensor:
        """Return ``c``, shape ``(batch, *positions, error_dim)``."""
        return error.float() @ self.weights.t()

    def accumulate(self, error: Tensor) -> None:
        """Take in the output error of one micro-batch, shape ``(batch, *positions, task_dim)``."""
        if self._correlation is not None:
            rows = error.float().flatten(0, -2)
            self._correlation += rows.t() @ rows

    def step(self) -> None:
        """Apply Oja's rule to the errors of one optimiser step."""
        if self._correlation is None:
            return
        total = self._correlation.trace()
        if total > 0:
            projected = self.weights @ (self._correlation / total)
            change = projected - projected @ self.weights.t() @ self.weights
            self.weights += self.learning_rate * change
        self._correlation.zero_()

    def explained_energy(self, error: Tensor) -> float:
        """Return the share of the error's energy that lies in the row space of ``P``, between 0 and 1."""
        rows = error.float().flatten(0, -2)
        basis, _ = torch.linalg.qr(self.weights.t())
        return float(
            (rows @ basis).square().sum() / rows.square().sum().clamp_min(torch.finfo(rows.dtype).tiny)
        )

    def to(self, device: torch.device) -> None:
        """Move the weights to a device."""
        self.weights = self.weights.to(device)
        if self._correlation is not None:
            self._correlation = self._correlation.to(device)
