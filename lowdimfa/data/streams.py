"""Samples of an iterable data set: how many came before is a sample's number, and a cursor reads on to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lowdimfa.data.items import ItemSplit, item_seed, tried
from lowdimfa.errors import InputError, LowdimfaError
from lowdimfa.generators import reproducible, seed_generators
from lowdimfa.tickets import derive_seed

TEST_SAMPLES = 100_000
"""A test stream with more is taken for an endless one."""

_END = object()


class StreamEndedError(Exception):
    """A stream has only ``samples``."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.samples = samples


class Cursor:
    """Reads a stream by number: on from where it is, or once more from the beginning.

    Python's, NumPy's and torch's default generators are seeded by epoch and number before each sample, those that are
    skipped too. So whoever asks, and in whatever order, gets the same, if the stream depends on nothing else.

    Parameters
    ----------
    stream
        What can be iterated again and again. Before each time its ``set_epoch`` is called, where it has one.
    """

    def __init__(self, stream: Iterable[Any]) -> None:
        self._stream = stream
        self._course: tuple[int, int | None] | None = None
        self._iterator: Iterator[Any] = iter(())
        self._next = 0
        self._looked = False

    @property
    def name(self) -> str:
        """What the stream is."""
        return type(self._stream).__name__

    @property
    def length(self) -> int | None:
        """How many samples the stream says that it has, or None where it doesn't."""
        try:
            return len(self._stream)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def item(self, number: int, epoch: int = 0, seed: int | None = None) -> Any:
        """Return an item of an epoch.

        Parameters
        ----------
        number, epoch
            Counted from 0.
        seed
            Of the epoch; None leaves the generators as they are.

        Raises
        ------
        StreamEndedError
            There is none of that number.
        """
        course, self._course = self._course, None  # whatever is raised here, the next call begins anew
        if course != (epoch, seed) or number < self._next:
            self._begin(epoch, seed)
        while self._next <= number:
            if seed is not None:
                seed_generators(item_seed(seed, self._next))
            item = tried(partial(next, self._iterator), _END, self._next, f"item {self._next}")
            if item is _END:
                raise StreamEndedError(self._next)
            self._next += 1
        self._course = epoch, seed
        return item

    def look_behind_length(self, seed: int | None) -> None:
        """Warn, once, where the last sample that the stream says it has was asked for, and is not the last."""
        if self._looked or self._course is None or self._next != self.length:
            return
        self._looked = True
        self._course = None  # it is further than what was asked for
        if seed is not None:
            seed_generators(item_seed(seed, self._next))
        try:
            ended = tried(partial(next, self._iterator), _END, self._next, f"item {self._next}") is _END
        except LowdimfaError:  # nobody has asked for it
            return
        if not ended:
            warnings.warn(
                f"data.factory: {self.name} says that it has {self.length:,} samples, and goes on behind them: "
                "each epoch leaves out what comes then. Correct its __len__, or set train.steps_per_epoch.",
                stacklevel=2,
            )

    def _begin(self, epoch: int, seed: int | None) -> None:
        self._iterator, self._next = iter(()), 0  # the one before ends first
        if callable(set_epoch := getattr(self._stream, "set_epoch", None)):
            tried(set_epoch, epoch, 0, f"epoch {epoch}")
        if seed is not None:
            seed_generators(derive_seed(seed, "stream"))
        self._iterator = tried(iter, self._stream, 0, "item 0")


@dataclass(frozen=True)
class StreamSplit(ItemSplit):
    """Training samples of a stream, which are drawn in its order.

    Attributes
    ----------
    items
        The stream's `Cursor`, which all epochs share.
    steps, batch_size
        An epoch has so many steps, each of so many samples; without steps it has what the stream says that it has.
    epoch
        Whose samples these are.
    """

    steps: int | None = None
    batch_size: int = 1
    epoch: int = 0

    def __len__(self) -> int:
        """Return the samples of an epoch.

        Raises
        ------
        InputError
            Neither the stream nor the user says.
        """
        samples = self.items.length if self.steps is None else self.steps * self.batch_size
        if samples is None:
            raise InputError(
                "train.steps_per_epoch",
                f"none, with training samples from a stream that has no length ({self.items.name})",
                "how many steps an epoch has",
                "An epoch ends after so many; the next one begins the stream anew.",
            )
        return int(samples)

    def of_epoch(self, epoch: int) -> StreamSplit:
        """Return the samples of another epoch."""
        return replace(self, epoch=epoch)

    def _read(self, numbers: list[int], seed: int | None, times: list[int]) -> Iterator[Any]:
        try:
            for number in numbers:
                yield self.items.item(number, self.epoch, seed)
        except StreamEndedError as end:
            raise self._too_short(end.samples) from end
        if self.steps is None:
            self.items.look_behind_length(seed)

    def _too_short(self, samples: int) -> InputError:
        if not samples:
            return InputError(self.where, "a train split without samples", "at least one sample")
        most = samples // self.batch_size
        told = (
            "as its length is" if self.steps is None else f"for {self.steps:,} steps of {self.batch_size:,}"
        )
        return InputError(
            self.where if self.steps is None else "train.steps_per_epoch",
            f"a stream that ended after {samples:,} samples of epoch {self.epoch + 1}",
            f"{len(self):,}, {told}",
            f"Set train.steps_per_epoch to at most {most:,}."
            if most
            else "Choose a smaller train.batch_size.",
        )


def is_stream(items: object) -> bool:
    """Return whether items come one after the other, and by no number."""
    if isinstance(items, IterableDataset):
        return True
    return (
        isinstance(items, Iterable)
        and not hasattr(items, "__getitem__")
        and not isinstance(items, DataLoader)
    )


def stream_split(items: Iterable[Any], where: str) -> StreamSplit:
    """Return the training samples of a stream.

    Raises
    ------
    InputError
        It is an iterator, which can't begin anew.
    """
    return StreamSplit(_cursor(items, where), where)


def listed(items: Iterable[Any], where: str) -> ItemSplit:
    """Return the test samples of a stream, which are read once.

    Raises
    ------
    InputError
        It is an iterator, or too long.
    """
    cursor, read = _cursor(items, where), list[Any]()
    with reproducible(0):
        try:
            while len(read) <= TEST_SAMPLES:
                read.append(cursor.item(len(read), seed=0))
        except StreamEndedError:
            return ItemSplit(read, where)
    raise InputError(
        where,
        f"more than {TEST_SAMPLES:,} test samples from a stream ({cursor.name}), which are held in memory",
        "a stream that ends before, or a map-style data set",
        f"Cut it off: .take({TEST_SAMPLES}) of datasets, or itertools.islice in its __iter__.",
    )


def _cursor(items: Iterable[Any], where: str) -> Cursor:
    if isinstance(items, Iterator) and not isinstance(items, IterableDataset):
        raise InputError(
            where,
            f"an iterator ({type(items).__name__}), which can be read once",
            "a data set whose __iter__ begins anew each time",
            "Make it a torch.utils.data.IterableDataset that makes the iterator in its __iter__.",
        )
    return Cursor(items)
