"""What a run reads of its data, with random numbers that are the same in every process that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowdimfa.data.base import BatchOrder, Dataset
from lowdimfa.data.drawing import read, spread
from lowdimfa.data.fingerprint import Fingerprint, content
from lowdimfa.data.items import COLLATE, ItemSplit, Samples
from lowdimfa.data.rows import put_in
from lowdimfa.data.splits import DigestedSplit, Split, whole_of
from lowdimfa.data.streams import StreamSplit
from lowdimfa.errors import InputError
from lowdimfa.tickets import Ticket, derive_seed
from lowdimfa.values import Inputs, TensorType, Types, named, types_of

T = TypeVar("T")

_FEW = 128
"""Samples, of those that may be costly to read, that stand for a split in the fingerprint."""

_AGAIN = 17
"""Samples that are read twice: a prime number, so that no counter that comes round after fewer items comes out even."""

_CHUNK = 4096
"""Samples that are looked at together."""


class Reader:
    """Reads micro-batches and evaluation batches.

    Python's, NumPy's and torch's default generators are seeded by run, epoch and sample around every item, or by run,
    epoch and batch around a call of a split of the user's own; evaluations draw the same in every epoch. So first block
    and head, each in its own process, read one item alike, and so does a resumed run. The generators are left seeded,
    as forward passes leave torch's: who reads in a user's process restores them.

    Inputs by name keep the names, shapes and types that they begin with.

    Parameters
    ----------
    dataset
        Training and test samples.
    order
        Which samples each micro-batch has.
    types
        Of one sample's inputs, where these have names and are known; else the first inputs that are read tell.
    """

    def __init__(self, dataset: Dataset, order: BatchOrder, types: Types | None = None) -> None:
        self.dataset = dataset
        self.order = order
        self.types = types
        self._evaluation = evaluation_batches(dataset.test, order.evaluation_size)

    def microbatch(self, ticket: Ticket) -> Samples:
        """Read a training micro-batch."""
        epoch = ticket.step // self.order.steps_per_epoch
        return self.training(self.order.indices(ticket), epoch)

    def step(self, step: int) -> Iterator[Samples]:
        """Read the micro-batches of a step, one after the other."""
        return (self.microbatch(Ticket(step, part)) for part in range(self.order.microbatches))

    def training(self, indices: Tensor, epoch: int = 0) -> Samples:
        """Read some training samples as they are in an epoch."""
        split = self.dataset.train
        if isinstance(split, StreamSplit):
            split = split.of_epoch(epoch)
        return self._read(split, indices, derive_seed(self.order.seed, "samples", epoch))

    def test(self, indices: Tensor) -> Samples:
        """Read some test samples."""
        return self._read(self.dataset.test, indices, derive_seed(self.order.seed, "test samples"))

    def _read(self, split: Split, indices: Tensor, seed: int) -> Samples:
        samples = read(split, indices, seed)
        return Samples(partial(self._checked, samples, len(indices)), partial(_targets, samples))

    def _checked(self, samples: Samples, number: int) -> Inputs:
        """Return the inputs of so many samples, without the graph that may have made them.

        Those that have names, or come of ``data.collate``, must be as before.

        Raises
        ------
        InputError
            A name is missing or new, or a tensor has another shape or type.
        """
        given: Any = samples.inputs()
        by_name = isinstance(given, Mapping)
        inputs: Inputs = (
            {name: _detached(part) for name, part in given.items()} if by_name else _detached(given)
        )
        whole = whole_of(self.dataset.train)
        collated = isinstance(whole, ItemSplit) and whole.collate is not None
        if not by_name and not collated:
            return inputs
        found: dict[str, object] = {name: _sample_type(part, number) for name, part in named(inputs).items()}
        if self.types is None and all(isinstance(kind, TensorType) for kind in found.values()):
            self.types = types_of(inputs, leading=1)
        expected = self.types or {}
        for name in (*expected, *found):
            kind, wanted = found.get(name, "nothing"), expected.get(name)
            if kind != wanted:
                else_ = "none of that name" if expected else "a tensor with the samples first"
                raise InputError(
                    COLLATE if collated else "data.factory",
                    f"{kind} as the input{name and f' {name!r}'}",
                    f"{wanted or else_}, as in every {'batch' if collated else 'sample'}",
                    f"Pad or crop samples to one length in {'it' if collated else 'the data set'}.",
                )
        return inputs

    def evaluation_batch(self, index: int) -> Samples:
        """Read a batch of an evaluation."""
        return self.test(self._evaluation[index])

    @property
    def evaluation_batches(self) -> int:
        """Batches of an evaluation."""
        return len(self._evaluation)

    def close(self) -> None:
        """Give back what reading takes, if anything."""

    def known_targets(self, at_most: int) -> Iterator[Tensor]:
        """Return the targets of both splits, but of those that are costly to read only so many, evenly spread.

        These are items, and splits that know a digest of their own and their extremes, which come first. Of a stream it
        is its first samples.
        """
        for split in (self.dataset.train, self.dataset.test):
            whole = whole_of(split)
            if isinstance(whole, DigestedSplit):
                yield whole.extremes()
        yield from self._known(at_most, lambda samples: samples.targets())

    def known_inputs(self, at_most: int) -> Iterator[Inputs]:
        """Return the inputs of the samples whose targets are `known_targets`."""
        return self._known(at_most, lambda samples: samples.inputs())

    def _known(self, at_most: int, part: Callable[[Samples], T]) -> Iterator[T]:
        for split, samples in ((self.dataset.train, self.training), (self.dataset.test, self.test)):
            whole = whole_of(split)
            few = isinstance(whole, DigestedSplit | ItemSplit)
            indices = spread(split, at_most) if few else torch.arange(len(split))
            for chunk in torch.split(indices, _CHUNK):
                yield part(samples(chunk))

    def require_repeatable(self, samples: int = _AGAIN) -> None:
        """Refuse data that give other values when they are read again with the same random numbers.

        Raises
        ------
        InputError
            They do: the processes of a run would see different samples.
        """
        test = torch.arange(min(samples, len(self.dataset.test)))
        self._require_repeatable("training", self.training, self._first(samples))
        self._require_repeatable("test", self.test, [test])

    def _first(self, samples: int) -> list[Tensor]:
        """Return the indices of the first micro-batches of a run, as many as have so many samples, if an epoch has."""
        first: list[Tensor] = []
        for step, part in product(range(self.order.steps_per_epoch), range(self.order.microbatches)):
            first.append(self.order.indices(Ticket(step, part))[: samples - sum(map(len, first))])
            if sum(map(len, first)) == samples:
                break
        return first

    @staticmethod
    def _require_repeatable(
        name: str, read_samples: Callable[[Tensor], Samples], batches: list[Tensor]
    ) -> None:
        once, again = ([_contents(read_samples(indices)) for indices in batches] for _ in range(2))
        for one, other in zip(once, again, strict=True):
            if what := next((what for what, content in one.items() if content != other.get(what)), ""):
                raise InputError(
                    "data.factory",
                    f"{name} samples whose {what} differ when they are read again with the same random numbers",
                    "samples that depend on their index and the default generators of torch, NumPy and Python alone",
                    "Several processes read the data, each a part of them: a generator of the data set's own, a "
                    "counter, or an item that is changed in place gives each of them other samples.",
                )

    def fingerprint(self) -> str:
        """Return what tells, by `lowdimfa.data.fingerprint.differing`, whether two processes read the same samples.

        It covers the numbers of samples, the targets, and type, shape and values of some inputs; of tables each column.
        Of floating-point values the last bits don't count: they may differ from one processor to another.
        """
        train, test = self.dataset.train, self.dataset.test
        own = [given.digest for given in map(put_in, (train, test)) if isinstance(given, DigestedSplit)]
        found = Fingerprint(f"{len(train)}:{len(test)}", *own)
        for of, samples in (
            ("", self.training(spread(train, _FEW))),
            ("test ", self.test(spread(test, _FEW))),
        ):
            for name, part in sorted(named(samples.inputs()).items()):
                found.add(f"{of}{name}", part)
                found.add_columns(f"{of}{name}", part)
            found.add_columns(f"{of}targets", samples.targets())
        for targets in self.known_targets(_FEW):
            found.add("targets", targets, together=True)
        return str(found)


def evaluation_batches(split: Split, size: int) -> list[Tensor]:
    """Return the indices of a split in order, in batches of a size (fewer in the last)."""
    return list(torch.split(torch.arange(len(split)), size))


def _detached(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part  # what isn't a tensor is refused elsewhere


def _targets(samples: Samples) -> Tensor:
    """Return the targets in a type that torch computes with: of these it knows little more than the names."""
    targets: Tensor = _detached(samples.targets())
    return targets.long() if targets.dtype in (torch.uint16, torch.uint32, torch.uint64) else targets


def _sample_type(part: object, samples: int) -> object:
    """Return the type of one sample of an input, or in words why there is none."""
    if not isinstance(part, Tensor):
        return f"a {type(part).__name__}"
    if part.shape[:1] != (samples,):
        return f"a tensor of shape {tuple(part.shape)} for {samples} samples"
    return TensorType(tuple(part.shape[1:]), part.dtype)


def _contents(samples: Samples) -> dict[str, object]:
    """Return everything that tells samples from others; a copy, as they may share memory with the data set."""
    parts = {f"inputs {name!r}" if name else "inputs": part for name, part in named(samples.inputs()).items()}
    return {
        what: (part.dtype, part.shape, content(part))
        for what, part in (parts | {"targets": samples.targets()}).items()
    }
