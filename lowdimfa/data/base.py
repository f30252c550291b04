"""Data sets as two splits, and the deterministic order in which a run draws from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from lowdimfa.data.arrays import is_data, tensor_split
from lowdimfa.data.items import Collate, ItemSplit
from lowdimfa.data.rows import put_together
from lowdimfa.data.splits import Split, SubSplit, whole_of
from lowdimfa.data.streams import StreamSplit, is_stream, listed, stream_split
from lowdimfa.errors import InputError, LowdimfaError
from lowdimfa.generators import reproducible
from lowdimfa.tickets import Ticket, derive_seed

_FEW = (16, 8, 4, 2)
"""Items whose targets say what kind of task it is: as many of these as there are."""

Task = Literal["classification", "tokens", "regression"]
LastBatch = Literal["drop", "keep"]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of one task.

    Attributes
    ----------
    name
        For messages and reports.
    task
        ``classification`` (one integer class per sample), ``tokens`` (one integer class per position) or
        ``regression`` (float targets). It decides the default loss and whether accuracy is reported.
    classes
        Names of the classes in the order of their numbers; None where nobody knows them.
    images
        How inputs were made of pictures, in the words of a ``preprocessor_config.json`` of Hugging Face; None where no
        such file says it.
    """

    name: str
    train: Split
    test: Split
    task: Task
    classes: tuple[str, ...] | None = None
    images: Mapping[str, Any] | None = None

    def limited(self, samples: int) -> Dataset:
        """Return the same data with only the first ``samples`` training samples."""
        if samples > len(self.train):
            raise InputError(
                "train.limit_samples",
                str(samples),
                f"at most the {len(self.train)} training samples of {self.name}",
            )
        return replace(self, train=SubSplit(self.train, torch.arange(samples)))

    def with_validation(self, fraction: float) -> Dataset:
        """Return the same data with the last ``fraction`` of the training samples in place of the test split.

        Hyperparameters are chosen on this, never on the test split.
        """
        held_out = round(len(self.train) * fraction)
        kept = len(self.train) - held_out
        if not 0 < held_out < len(self.train):
            raise InputError("data.validation", str(fraction), "a fraction that leaves samples on both sides")
        return replace(
            self,
            train=SubSplit(self.train, torch.arange(kept)),
            test=SubSplit(self.train, torch.arange(kept, kept + held_out)),
        )


def bytes_per_target(split: Split) -> float | None:
    """Return how many bytes of text a target of a split stands for on average, or None where it doesn't tell.

    Raises
    ------
    InputError
        What it tells is no positive number.
    """
    told: object = getattr(split, "bytes_per_target", None)
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < math.inf:
        found = f"a split whose bytes_per_target is {told!r}"
        raise InputError("data.factory", found, "a number above 0, or none")
    return float(told)


def as_dataset(value: object, where: str, collate: Collate | None = None) -> Dataset:
    """Turn what a user's factory returns into a `Dataset`.

    Accepted are a `Dataset`; four tensors or NumPy arrays (training inputs and targets, test inputs and targets), of
    inputs also several by name; or two `torch.utils.data.Dataset` (training and test), as `ItemSplit` has it. They are
    map-style or iterable; an iterable one for training becomes a `StreamSplit`, and one for tests is read here.
    ``collate`` puts the samples of any of them together, if it is given.

    Raises
    ------
    InputError
        Anything else, splits without samples, tensors of unequal length, or items that aren't any to collate.
    """
    train: Split
    test: Split
    parts = value if isinstance(value, Sequence) else ()
    if isinstance(value, Dataset):
        train, test = value.train, value.test
    elif len(parts) == 4 and all(map(is_data, parts, (True, False, True, False))):
        train, test = tensor_split(parts[:2], where, "training"), tensor_split(parts[2:], where, "test")
    elif len(parts) == 2 and all(hasattr(part, "__getitem__") or is_stream(part) for part in parts):
        train, test = (
            as_stream(part, where) if is_stream(part) else _item_split(part, where)
            for part, as_stream in zip(parts, (stream_split, listed), strict=True)
        )
    else:
        of = (
            f" of {', '.join(type(part).__name__ for part in parts[:5])}"
            if isinstance(value, tuple | list)
            else ""
        )
        expected = "a lowdimfa.data.Dataset, four tensors (train x, y, test x, y), or two Datasets, map-style or iterable"
        raise InputError(where, f"a factory that returned {type(value).__name__}{of}", expected)
    for name, split in (("train", train), ("test", test)):
        if not isinstance(split, StreamSplit) and len(split) == 0:
            raise InputError(where, f"a {name} split without samples", "at least one sample")
    if collate is not None:
        train, test = (put_together(split, where, collate) for split in (train, test))
    elif isinstance(value, Dataset):
        return value
    with reproducible(0):
        task = task_of(_first_targets(train))
    if isinstance(value, Dataset):
        return replace(value, train=train, test=test, task=task)
    return Dataset("user data", train, test, task)


def _first_targets(train: Split) -> Tensor:
    """Return a few targets: of Python's numbers that a regression has, one may be whole."""
    whole = whole_of(train)
    few = _FEW if isinstance(whole, ItemSplit) else ()
    for samples in few:
        if isinstance(whole, StreamSplit) or samples <= len(train):
            # A stream may be shorter; and what is wrong with an item is said when it is read, with more to tell.
            with suppress(LowdimfaError):
                return train.targets(torch.arange(samples))
    return train.targets(torch.tensor([0]))


def _item_split(items: Any, where: str) -> Split:
    if isinstance(items, IterableDataset) or not hasattr(items, "__len__"):
        raise InputError(
            where,
            f"a data set without items by number ({type(items).__name__})",
            "map-style data sets, with __getitem__ and __len__, or iterable ones, with __iter__",
        )
    if type(items) is Subset:  # so that a sample draws the same numbers in it as in the whole
        return SubSplit(_item_split(items.dataset, where), torch.as_tensor(items.indices))
    return ItemSplit(items, where)


def task_of(targets: Tensor) -> Task:
    """Return what kind of task has such targets."""
    if targets.is_floating_point():
        return "regression"
    return "classification" if targets.dim() == 1 else "tokens"


EVALUATION_SAMPLES = 256
"""In an evaluation batch, where they are few numbers each."""


class BatchOrder:
    """The samples of every micro-batch of a run, as a function of seed, step and micro-batch alone.

    Each epoch is a fresh permutation, or has the samples as they come. Two processes with the same arguments draw the
    same samples, and a resumed run goes on where the first one stopped, with no state to save.

    Parameters
    ----------
    samples, batch_size, microbatches
        Training samples, samples per step, and equal parts into which a step's batch is cut.
    seed
        The run's seed.
    last_batch
        What becomes of the samples of an epoch that don't fill a batch: ``keep`` makes a smaller one of them, whose
        parts differ by one sample at most.
    shuffled
        Whether epochs are permutations.

    Attributes
    ----------
    last_batch_size
        Samples of an epoch's last, smaller batch; 0 where there is none.
    left_out
        Samples of an epoch that are in no batch.
    evaluation_size
        Samples of an evaluation batch: those of a micro-batch, or 256 if that is more and a plan finds room for them.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        microbatches: int,
        seed: int,
        last_batch: LastBatch = "drop",
        shuffled: bool = True,
    ) -> None:
        if batch_size % microbatches:
            raise InputError(
                "train.microbatches", str(microbatches), f"a divisor of train.batch_size ({batch_size})"
            )
        if batch_size > samples:
            raise InputError("train.batch_size", str(batch_size), f"at most the {samples} training samples")
        rest = samples % batch_size
        self.last_batch_size = rest if last_batch == "keep" else 0
        self.left_out = rest - self.last_batch_size
        if 0 < self.last_batch_size < microbatches:
            raise InputError(
                "data.last_batch",
                f"'keep' with a last batch of {rest} samples",
                f"at least one for each of {microbatches} micro-batches",
                "Set it to 'drop', or choose another train.batch_size or fewer train.microbatches.",
            )
        self.batch_size = batch_size
        self.microbatches = microbatches
        self.microbatch_size = batch_size // microbatches
        self.evaluation_size = max(self.microbatch_size, EVALUATION_SAMPLES)
        self.smallest_microbatch = (self.last_batch_size or batch_size) // microbatches
        self.steps_per_epoch = samples // batch_size + (self.last_batch_size > 0)
        self.seed = seed
        self._samples, self._shuffled = samples, shuffled
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, ticket: Ticket) -> Tensor:
        """Return the sample indices of one micro-batch, int64, shape ``(samples,)``."""
        epoch, step = divmod(ticket.step, self.steps_per_epoch)
        if self._shuffled and epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._permutation = torch.randperm(self._samples, generator=generator, device="cpu")
            self._epoch = epoch
        first = step * self.batch_size
        size, larger = divmod(min(self.batch_size, self._samples - first), self.microbatches)
        first += ticket.microbatch * size + min(ticket.microbatch, larger)
        last = first + size + (ticket.microbatch < larger)
        return self._permutation[first:last] if self._shuffled else torch.arange(first, last)

    def drawn(self, steps: int) -> int:
        """Return how many samples the first steps of a run draw."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * (self._samples - self.left_out) + rest * self.batch_size
