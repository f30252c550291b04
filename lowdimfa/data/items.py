"""Samples of a map-style data set, each item read once for both of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from lowdimfa.errors import InputError, LowdimfaError, unforeseen
from lowdimfa.generators import seed_generators
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Inputs

TARGET = "labels"
"""The name of the target in items that are mappings, as in the data sets of Hugging Face."""

COLLATE = "data.collate"

doing: Any = [-1]
"""The item that this process reads, for who looks after it."""

Collate = Callable[[list[Any]], Any]

_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of neighbouring samples. It is odd, as some generators take the low 32 bits alone."""


@dataclass(frozen=True)
class Samples:
    """Samples that were read, with each part put together when it is asked for."""

    inputs: Callable[[], Inputs]
    targets: Callable[[], Tensor]


@dataclass(frozen=True)
class ItemSplit:
    """Samples of a map-style `torch.utils.data.Dataset`.

    Its items are ``(input, target)``, the input maybe a mapping from names; or mappings that have the target as `TARGET`.

    As `torch.utils.data.DataLoader` does, it takes a batch at once from ``__getitems__`` where there is one, and puts
    items together by `torch.utils.data.default_collate`, or by a function of the user's.

    Attributes
    ----------
    items
        The data set.
    where
        The key that names its factory, for messages.
    collate
        Makes a batch, which is what an item is, of a list of items; these may be anything then.
    """

    items: Any
    where: str = "data.factory"
    collate: Collate | None = None

    def __len__(self) -> int:
        return len(self.items)

    def inputs(self, indices: Tensor) -> Inputs:
        """Return the collated inputs of the given samples."""
        return self.read(indices).inputs()

    def targets(self, indices: Tensor) -> Tensor:
        """Return the collated targets of the given samples."""
        return self.read(indices).targets()

    def read(self, indices: Tensor, seed: int | None = None, before: Tensor | None = None) -> Samples:
        """Read each of the given samples once.

        Parameters
        ----------
        indices
            Of the samples.
        seed
            Where random numbers come from: Python's, NumPy's and torch's default generators are seeded by it and by
            the sample before each item (by all samples before a call of ``__getitems__`` or ``collate``), and are left
            so.
        before
            How often each sample came before in the epoch; by default none did.

        Raises
        ------
        InputError
            An item is neither a pair nor a mapping with a target. What can't be put together is refused when it is
            asked for.
        """
        numbers = indices.tolist()
        times = [0] * len(numbers) if before is None else before.tolist()
        read = self._read(numbers, seed, times)
        if self.collate is not None:
            of_batch = None if seed is None else derive_seed(seed, "collate", *of_items(numbers, times))
            return self._collate_by(self.collate, list(read), numbers, of_batch)
        pairs = [self._pair(item, number) for item, number in zip(read, numbers, strict=True)]
        inputs, targets = ([pair[part] for pair in pairs] for part in (0, 1))
        return Samples(
            partial(self._collate_inputs, inputs, numbers),
            partial(self._collate, targets, numbers, "target"),
        )

    def _read(self, numbers: list[int], seed: int | None, times: list[int]) -> Iterator[Any]:
        if (read_all := getattr(self.items, "__getitems__", None)) is not None:
            if seed is not None:
                seed_generators(derive_seed(seed, *of_items(numbers, times)))
            items = tried(
                read_all, numbers, numbers[0], f"the items {numbers[0]} to {numbers[-1]}, of a batch,"
            )
            if len(items) != len(numbers):
                found = f"{len(items)} items from __getitems__ for {len(numbers)} indices"
                raise InputError(self.where, found, "one item for each index")
            yield from items
            return
        for number, time in zip(numbers, times, strict=True):
            if seed is not None:
                seed_generators(item_seed(seed, number, time))
            yield tried(self.items.__getitem__, number, number, f"item {number}")

    @staticmethod
    def _collate_by(collate: Collate, items: list[Any], numbers: list[int], seed: int | None) -> Samples:
        if seed is not None:
            seed_generators(seed)
        batch = tried(collate, items, numbers[0], f"a batch of the items {numbers[0]} to {numbers[-1]}")
        inputs, targets = _pair(batch, COLLATE, "what it returned")
        parts = inputs if isinstance(inputs, Mapping) else {"": inputs}
        for name, part in (*parts.items(), ("target", targets)):
            if not isinstance(part, Tensor) or part.shape[:1] != (len(numbers),):
                shape = f" of shape {tuple(part.shape)}" if isinstance(part, Tensor) else ""
                raise InputError(
                    COLLATE,
                    f"a function that made {_a(part)}{shape} of {len(numbers)} items{name and f' as {name!r}'}",
                    "tensors with the items first",
                )
        # The function may fill the same memory at every call, and micro-batches wait for each other.
        own = {name: part.clone() for name, part in parts.items()}
        kept, labels = own if isinstance(inputs, Mapping) else own[""], targets.clone()
        return Samples(lambda: kept, lambda: labels)

    def _pair(self, item: Any, number: int) -> Sequence[Any]:
        return _pair(item, self.where, f"item {number}")

    def _collate_inputs(self, parts: list[Any], numbers: list[int]) -> Inputs:
        if not any(isinstance(part, Mapping) for part in parts):
            return self._collate(parts, numbers, "input")
        names = [list(part) if isinstance(part, Mapping) else _a(part) for part in parts]
        for number, found in zip(numbers, names, strict=True):
            if not found or not isinstance(found, list) or set(found) != set(names[0]):
                raise InputError(
                    self.where,
                    f"{found or 'nothing'} as the inputs of item {number}, and {names[0]} as those of item {numbers[0]}",
                    "inputs of the same names in all items",
                )
        return {
            name: self._collate([part[name] for part in parts], numbers, "input", f" {name!r}")
            for name in names[0]
        }

    def _collate(self, parts: list[Any], numbers: list[int], what: str, name: str = "") -> Tensor:
        batch, reason = _collated(parts)
        if batch is not None:
            return batch
        for part, number in zip(parts, numbers, strict=True):
            if _collated([part])[0] is None:
                raise InputError(
                    self.where,
                    f"{_a(part)} as the {what}{name} of item {number}",
                    "a tensor, a NumPy array or a number",
                    "Turn it into a tensor in the data set.",
                )
        shapes = [tuple(getattr(part, "shape", ())) for part in parts]
        other = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise InputError(
            self.where,
            f"{what}s{name} of shape {shapes[0]} in item {numbers[0]} and {shapes[other]} in item {numbers[other]}"
            f"{reason}",
            f"{what}s that can be put together",
            "A batch is one tensor: pad or crop its items to one shape in the data set.",
        )


def item_seed(seed: int, number: int, time: int = 0) -> int:
    """Return what the generators are seeded by before an item of a split is read for some time under a seed."""
    if time:
        return derive_seed(seed, *of_items([number], [time]))
    return (seed + number * _STRIDE) % 2**63


def of_items(numbers: list[int], times: list[int]) -> list[int | str]:
    """Return the words by which a seed for some items is derived: their numbers, and which time some of them come."""
    return [*numbers, "again", *times] if any(times) else [*numbers]


def _pair(item: Any, where: str, name: str) -> Sequence[Any]:
    """Return input and target of an item, or of a batch."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item
    if isinstance(item, Mapping) and TARGET in item:
        return {name: part for name, part in item.items() if name != TARGET}, item[TARGET]
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    size = f" without {TARGET!r}" if isinstance(item, Mapping) else size
    raise InputError(
        where,
        f"{_a(item)}{size} as {name}",
        f"(input, target), or a mapping with {TARGET!r}",
        "Let the data set return a tuple of these two, or wrap it in one that picks them.",
    )


def tried(read: Callable[[Any], Any], what: Any, number: int, name: str) -> Any:
    """Return what a data set gives; its errors name the item."""
    doing[0] = number
    try:
        return read(what)
    except LowdimfaError:
        raise
    except Exception as error:
        raise unforeseen(error, f"{name} of the data set can't be read") from error


def _collated(parts: list[Any]) -> tuple[Tensor | None, str]:
    """Return the parts of some items as one tensor, or None and why that can't be."""
    try:
        batch = default_collate(parts)
    except (TypeError, ValueError, RuntimeError) as error:
        return None, f" ({error})"
    return (batch, "") if isinstance(batch, Tensor) else (None, "")


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
