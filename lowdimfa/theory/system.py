"""The linear student, its task, and the feedback by which it learns.

The student is ``ŷ = W₂ W₁ x`` with white inputs, ``⟨x xᵀ⟩ = I``; the teacher is ``y = Σ x`` with
``Σ = ⟨y xᵀ⟩ = Σᵢ sᵢ uᵢ vᵢᵀ``. All tensors may have leading batch dimensions, one entry for each network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from lowdimfa.errors import InputError

Rule = Literal["fixed", "q", "q-and-p", "normative", "local"]
Drive = Literal["targets", "errors"]


@dataclass(frozen=True)
class LinearTask:
    """A linear teacher ``Σ = U diag(s) Vᵀ`` of rank ``d`` on white inputs.

    Attributes
    ----------
    left
        ``U``, shape ``(*batch, m, d)``, orthonormal columns.
    singular_values
        ``s``, shape ``(d,)``, positive and decreasing.
    right
        ``V``, shape ``(*batch, n, d)``, orthonormal columns.
    """

    left: Tensor
    singular_values: Tensor
    right: Tensor

    @classmethod
    def random(
        cls, singular_values: Sequence[float], inputs: int, outputs: int, generator: torch.Generator
    ) -> LinearTask:
        """Return a teacher with these singular values and random singular vectors, in float64.

        Raises
        ------
        InputError
            The values aren't positive, decreasing and different, or there are more of them than inputs or outputs.
        """
        values = list(singular_values)
        # Modes of the same strength have no directions of their own.
        falls = all(first > second for first, second in pairwise(values))
        if not values or not falls or not 0 < values[-1] <= values[0] < math.inf:
            raise InputError(
                "singular_values", f"{values}", "positive numbers in decreasing order, all different"
            )
        if len(values) > min(inputs, outputs):
            raise InputError(
                "singular_values",
                f"{len(values)} of them",
                f"at most min(inputs, outputs) = {min(inputs, outputs)}",
            )
        left, right = (_orthonormal(rows, len(values), generator) for rows in (outputs, inputs))
        return cls(left, torch.tensor(values, dtype=torch.float64), right)

    @classmethod
    def stack(cls, tasks: Sequence[LinearTask]) -> LinearTask:
        """Return several teachers with the same singular values as one batch.

        Raises
        ------
        InputError
            Their singular values differ.
        """
        for task in tasks[1:]:
            if not torch.equal(task.singular_values, tasks[0].singular_values):
                found = f"{tasks[0].singular_values.tolist()} and {task.singular_values.tolist()}"
                raise InputError("singular_values", found, "the same ones in all tasks of a batch")
        left, right = (torch.stack([getattr(task, name) for task in tasks]) for name in ("left", "right"))
        return cls(left, tasks[0].singular_values, right)

    @property
    def teacher(self) -> Tensor:
        """The map ``Σ``, shape ``(*batch, m, n)``."""
        return self.left * self.singular_values @ self.right.mT

    def modes(self, student: Tensor) -> Tensor:
        """Return the strengths ``aᵢ = uᵢᵀ W vᵢ`` of a map ``W``, shape ``(*batch, m, n)`` to ``(*batch, d)``."""
        return (self.left * (student @ self.right)).sum(-2)

    def loss(self, student: Tensor) -> Tensor:
        """Return the mean squared error ``½ ⟨|y − ŷ|²⟩ = ½ ‖Σ − W‖²``, shape ``(*batch)``."""
        return (self.teacher - student).square().sum((-2, -1)) / 2


@dataclass(frozen=True)
class LinearFeedback:
    """How ``Q`` and ``P`` learn, and how weights decay. Rates are per unit of time.

    Attributes
    ----------
    rule
        ``fixed``: neither learns. ``q``: ``Q`` learns by the Kolen–Pollack rule. ``q-and-p``: also ``P``, by
        Oja's subspace rule. Backpropagation is ``q`` with ``P = I`` and ``Q = W₂ᵀ`` at the start. The paper's second
        generation: ``normative``, both by the gradient of ``½ ‖(Q P)ᵀ − W₂‖²``; ``local``, both by the gradient of
        ``W₂`` through the other factor.
    drive
        What Oja's rule sees: the targets (the paper's linear theory, ``C = Σ_yy``) or the output errors (the
        paper's rule for deep networks, ``C = ⟨δ δᵀ⟩``).
    p_rate
        ``η_P``, speed of Oja's rule, or of both factors of the second generation, relative to that of the weights.
    decay
        ``λ``, decay of ``W₂`` and ``Q``, and of ``W₁`` unless ``first_layer_decays`` is false. ``local`` has it for
        ``P`` too (without, nothing but zero is stationary), ``normative`` for neither factor.
    first_layer_decays
        False is beyond the paper: with error-driven ``P`` of rank below the teacher's, it keeps what was learned
        while ``P`` is turned elsewhere.
    anneal
        Time in which ``λ`` falls by a factor e; None for constant ``λ`` (the paper).
    """

    rule: Rule
    drive: Drive = "targets"
    p_rate: float = 1.0
    decay: float = 0.0
    first_layer_decays: bool = True
    anneal: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rule", self.rule, get_args(Rule)),
            ("drive", self.drive, get_args(Drive)),
        ):
            if value not in known:
                raise InputError(f"LinearFeedback: {name}", repr(value), f"one of {', '.join(known)}")
        is_meant = 0 <= self.decay < math.inf and 0 <= self.p_rate < math.inf
        if not is_meant or (self.anneal is not None and not self.anneal > 0):
            raise InputError(
                "LinearFeedback",
                f"decay {self.decay}, p_rate {self.p_rate}, anneal {self.anneal}",
                "decay and p_rate of at least 0, and anneal above 0",
            )


@dataclass(frozen=True)
class LinearState:
    """Weights of the student and of its feedback.

    Attributes
    ----------
    w1, w2
        Shapes ``(*batch, h, n)`` and ``(*batch, m, h)``.
    q, p
        Shapes ``(*batch, h, r)`` and ``(*batch, r, m)``; the rows of ``p`` are orthonormal.
    """

    w1: Tensor
    w2: Tensor
    q: Tensor
    p: Tensor

    @classmethod
    def random(
        cls, task: LinearTask, hidden: int, error_dim: int, scale: float, generator: torch.Generator
    ) -> LinearState:
        """Return small random weights and random feedback for an unbatched task.

        Parameters
        ----------
        scale
            Standard deviation of the outputs of each layer for inputs of unit variance. ``Q`` has unit columns in
            the mean, whatever the scale: nothing else starts the learning of ``W₁``.

        Raises
        ------
        InputError
            The error dimension is below 1 or above the outputs.
        """
        (outputs, _), (inputs, _) = task.left.shape, task.right.shape
        if not 1 <= error_dim <= outputs:
            raise InputError("error_dim", str(error_dim), f"1 to {outputs}, the number of outputs")
        w1 = scale * _normal(hidden, inputs, generator) / inputs**0.5
        w2 = scale * _normal(outputs, hidden, generator) / hidden**0.5
        q = _normal(hidden, error_dim, generator) / hidden**0.5
        return cls(w1, w2, q, _orthonormal(outputs, error_dim, generator).mT.contiguous())

    @classmethod
    def stack(cls, states: Sequence[LinearState]) -> LinearState:
        """Return several students of the same shapes as one batch."""
        return cls(
            *(torch.stack(parts) for parts in zip(*(state.tensors() for state in states), strict=True))
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``W₁, W₂, Q, P``."""
        return self.w1, self.w2, self.q, self.p

    @property
    def student(self) -> Tensor:
        """The student's map ``W₂ W₁``, shape ``(*batch, m, n)``."""
        return self.w2 @ self.w1


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a random matrix with orthonormal columns."""
    basis: Tensor = torch.linalg.qr(_normal(rows, columns, generator))[0]
    return basis
