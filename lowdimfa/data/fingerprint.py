"""By what two processes, or two parts of a run, know that they read the same data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TOLERANCE = 1e-4
"""Part of the largest number by which numbers of the same data may differ."""


def numbers_of(part: Tensor) -> list[float]:
    """Return a number for each sample of floating-point values, by which samples can be told apart.

    It is a sum with weights that differ from place to place. Last bits, which differ from one processor to another,
    hardly change it.

    Parameters
    ----------
    part
        Shape ``(samples, …)``.
    """
    values = part.detach().cpu().double().reshape(len(part), -1)
    weights = torch.cos(torch.arange(1.0, values.shape[1] + 1, dtype=torch.float64))
    return (values @ weights).tolist()


def fingerprint(digest: str, numbers: Sequence[float]) -> str:
    """Return what `same_data` compares: a digest of what must be equal, and `numbers_of` what may be rounded."""
    return " ".join([digest, *(f"{number:.6g}" for number in numbers)])


def same_data(one: str, other: str) -> bool:
    """Return whether two fingerprints are of the same data."""
    (digest, *numbers), (other_digest, *other_numbers) = one.split(), other.split()
    if digest != other_digest or len(numbers) != len(other_numbers):
        return False
    found, wanted = (torch.tensor([float(number) for number in some]) for some in (numbers, other_numbers))
    finite = [abs(float(number)) for number in wanted[wanted.isfinite()]]
    near = torch.isclose(found, wanted, 0.0, _TOLERANCE * max(finite, default=0.0), equal_nan=True)
    return bool(near.all())
