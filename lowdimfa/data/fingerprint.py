"""By what two processes, or two parts of a run, know that they read the same data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_PART = 3e-4
"""By which part of the standard deviation of values a number may differ: more than a few pixels of a picture that another
decoder rounds otherwise, less than another sample does."""

_LAST_BITS = 2.0
"""Of all values' type, by how many of its last bits they may differ, whatever their deviation."""

_SLICE = 1 << 20
"""Values that are looked at together."""

_COLUMNS = 256
"""Of a table, at most, where each is looked at by itself; what is wider has values of one kind, as pictures do."""


class Fingerprint:
    """Takes in data part by part: a digest of what must be equal, and numbers of what may have been rounded."""

    def __init__(self, *words: str) -> None:
        self._digest = hashlib.sha256(" ".join(words).encode())
        self._numbers: list[str] = []

    def add(self, name: str, part: Tensor, together: bool = False) -> None:
        """Take in values of a type and shape.

        Parameters
        ----------
        name
            Of the part.
        part
            Shape ``(samples, …)``.
        together
            Whether samples of floating-point values have one number together in place of one each.
        """
        part = part.detach().cpu()
        self._digest.update(f"{name}:{part.dtype}:{tuple(part.shape)}".encode())
        if not part.is_floating_point():
            self._digest.update(content(part))
            return
        for values in _slices(part):
            if not values.isfinite().all():
                kinds = values.isnan() + 2 * values.isposinf() + 3 * values.isneginf()
                self._digest.update(content(kinds))
        self._numbers.append(_written(_numbers(part, together)))

    def add_columns(self, name: str, part: Tensor) -> None:
        """Take in each column of floating-point values of shape ``(samples, columns)``, however small beside others."""
        part = part.detach().cpu()
        if not part.is_floating_point() or part.dim() != 2 or not 1 < part.shape[1] <= _COLUMNS:
            return
        self._digest.update(f"{name}:{tuple(part.shape)}".encode())
        columns = part.double()
        present = columns.isfinite().sum(0).clamp(min=1)
        sizes = (_finite(columns).square().sum(0) / present).sqrt()
        # What last bits leave of a constant column whose mean was subtracted differs, and is nothing.
        # Columns of nothing but zeros don't say how large the others are.
        filled = sizes[sizes > 0]
        least = _LAST_BITS * _bits(part.dtype) * float(filled.median() if len(filled) else 0.0)
        for column in part.unbind(1):
            numbers = list(_numbers(column, True))
            unit = math.sqrt(len(part)) / 3
            self._numbers.append(_written([max(numbers[0], unit * least), *numbers[1:]]))

    def __str__(self) -> str:
        return ";".join([self._digest.hexdigest()[:16], *self._numbers])


def differing(one: str, other: str) -> tuple[str, str] | None:
    """Return by what two fingerprints aren't of the same data, of each its own; None where they are."""
    if one == other:
        return None
    (digest, *parts), (other_digest, *others) = one.split(";"), other.split(";")
    if digest != other_digest or len(parts) != len(others):
        return digest[:16], other_digest[:16]
    for pair in zip(parts, others, strict=True):
        found, wanted = map(_floats, pair)
        tolerance = max(found[0], wanted[0])
        if len(found) != len(wanted) or math.isnan(tolerance):
            return pair[0][:40], pair[1][:40]
        for place, (mine, theirs) in enumerate(zip(found[1:], wanted[1:], strict=True)):
            if not (mine == theirs or abs(mine - theirs) <= tolerance):
                return f"{digest}, {mine:.9g} at {place}", f"{digest}, {theirs:.9g} at {place}"
    return None


def _numbers(part: Tensor, together: bool) -> Iterator[float]:
    """Yield a tolerance, the mean, and of each sample, or of all, a number that tells it from others.

    That is a sum of deviations from the mean, with weights at random: last bits hardly change it, whether values are
    alike from place to place or not. All are in units of the sum of one sample, or of all.
    """
    found = [(int(some.isfinite().sum()), float(_finite(some).sum())) for some in _slices(part)]
    count = max(1, sum(number for number, _ in found))
    mean = sum(total for _, total in found) / count
    variance = sum(float(_finite(some - mean).square().sum()) for some in _slices(part)) / count
    width = math.prod(part.shape[1:])
    weights, unit = _weights(width), math.sqrt(width / 3)
    numbers = torch.cat([_finite(some - mean) @ weights for some in _slices(part)])
    if together:
        numbers, unit = numbers[None] @ _weights(len(part)), unit * math.sqrt(len(part) / 3)
    bits = _LAST_BITS * _bits(part.dtype)
    yield unit * max(_PART * math.sqrt(variance), bits * math.hypot(math.sqrt(variance), mean))
    yield unit * mean
    yield from numbers.tolist()


def _slices(part: Tensor) -> Iterator[Tensor]:
    """Yield the values of a part in double precision, some samples at a time, of shape ``(samples, values)``."""
    rows = part.reshape(len(part), math.prod(part.shape[1:]))
    for some in torch.split(rows, max(1, _SLICE // max(1, rows.shape[1]))):
        yield some.double()


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0)


def _weights(number: int) -> Tensor:
    """Return the same weights from -1 to 1 everywhere: of these numbers torch makes no last bits that differ."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(number, generator=generator, dtype=torch.float64) - 1


def _bits(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).eps, 1e-7)


def _written(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)


def _floats(part: str) -> list[float]:
    try:
        return [float(number) for number in part.split()] or [math.nan]
    except ValueError:
        return [math.nan]  # it wasn't made here


def content(values: Tensor) -> bytes:
    """Return the bytes of values, a copy."""
    return values.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
