"""A run's data, as its specification says it: loaded, and read ahead."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lowdimfa.data.base import BatchOrder, Dataset, as_dataset
from lowdimfa.data.reading import Reader
from lowdimfa.data.streams import StreamSplit
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.imports import call_factory, resolve
from lowdimfa.network import computing_threads
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.data import DataSection
from lowdimfa.services.spec.given import Given, opened
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Types

_WHOLE = "With train.steps_per_epoch every batch is whole."


@dataclass(frozen=True)
class Source:
    """Where the data of a run come from.

    Attributes
    ----------
    data
        The specification's section.
    limit, steps_per_epoch, batch_size, seed
        ``train.limit_samples`` and so on.
    threads
        With which torch makes the data, wherever that is: the bits of a mean depend on it.
    """

    data: DataSection
    limit: int | None
    steps_per_epoch: int | None
    batch_size: int
    seed: int
    threads: int

    @classmethod
    def of(cls, specification: Specification) -> Source:
        """Return that of a run."""
        train = specification.train
        return cls(
            specification.data,
            train.limit_samples,
            train.steps_per_epoch,
            train.batch_size,
            train.seed,
            specification.placement.threads_of(0),
        )

    def load(self) -> Dataset:
        """Call the factory, and apply the limits that the specification sets."""
        data = self.data
        with computing_threads(self.threads), reproducible(derive_seed(self.seed, "data")):
            made = call_factory(opened(data.factory), deepcopy(dict(data.args)), "data.factory")
        collate = None if data.collate is None else resolve(opened(data.collate), "data.collate")
        dataset = as_dataset(made, "data.factory", collate)
        if isinstance(dataset.train, StreamSplit):
            return replace(dataset, train=self._epochs_of(dataset.train))
        if self.steps_per_epoch is not None:
            raise InputError(
                "train.steps_per_epoch",
                f"{self.steps_per_epoch}, and training samples that aren't a stream",
                "none: an epoch is all samples",
                "train.limit_samples takes fewer.",
            )
        if data.validation:
            dataset = dataset.with_validation(data.validation)
        return dataset if self.limit is None else dataset.limited(self.limit)

    def _epochs_of(self, stream: StreamSplit) -> StreamSplit:
        """Return a stream of training samples with the length of its epochs.

        Raises
        ------
        InputError
            There is none, or a setting asks for what no stream can give.
        """
        data, steps, length = self.data, self.steps_per_epoch, stream.items.length
        for key, found, refused, expected, hint in (
            ("data.validation", data.validation, data.validation > 0, "0", "Give test data instead."),
            ("train.limit_samples", self.limit, self.limit, "none", "Set train.steps_per_epoch."),
            ("data.workers", data.workers, data.workers > 1, "0 or 1", "Each would read all of the stream."),
            ("data.last_batch", data.last_batch, steps and data.last_batch == "keep", "'drop'", _WHOLE),
        ):
            if refused:
                raise InputError(key, f"{found!r} with training samples from a stream", expected, hint)
        if steps is not None and length is not None and steps * self.batch_size > length:
            more = f"{steps:,} with a stream of {length:,} samples, {self.batch_size:,} in a step"
            raise InputError("train.steps_per_epoch", more, f"at most {length // self.batch_size:,}")
        stream = replace(stream, steps=steps, batch_size=self.batch_size)
        len(stream)  # raises where nothing tells it
        return stream

    def packed(self) -> Source:
        """Return the same for another process, which has none of the objects of the user's program.

        Raises
        ------
        InputError
            One can't be serialised.
        """
        given = {key: _packed(value) for key, value in self.data if isinstance(value, Given)}
        return replace(self, data=self.data.model_copy(update=given))


@dataclass(frozen=True)
class _Makes:
    """Makes a run's reader in another process."""

    source: Source
    order: BatchOrder
    types: Types | None

    def __call__(self) -> Reader:
        return Reader(self.source.load(), self.order, self.types)


def _packed(given: Given) -> Given:
    from ray import cloudpickle  # late: only objects need it

    try:
        return Given(given.name, partial(_unpacked, cloudpickle.dumps(given.load())), given.whole)
    except Exception as error:  # whatever the user's objects raise
        raise InputError(
            "data.workers",
            f"{given!r}, which can't be sent to other processes ({in_words(error)})",
            "one that can be serialised, or 0 workers",
            "Give what makes it instead.",
        ) from error


def _unpacked(pickled: bytes) -> Any:
    from ray import cloudpickle

    return cloudpickle.loads(pickled)


def load_dataset(specification: Specification) -> Dataset:
    """Load the data of a run."""
    return Source.of(specification).load()


def read_ahead(specification: Specification, reader: Reader, steps: int, **wanted: Any) -> Reader:
    """Return what reads a run's data by ``data.workers``: the reader itself where there are none.

    Parameters
    ----------
    specification, reader
        Of the run.
    steps
        How many it has.
    wanted
        Which parts of which micro-batches, as `lowdimfa.data.workers.Ahead` has it.
    """
    data = specification.data
    if not data.workers:
        return reader
    from lowdimfa.data.workers import Ahead, WorkerReader

    makes = _Makes(Source.of(specification).packed(), reader.order, reader.types)
    return WorkerReader(reader, Ahead(makes, data.workers, data.prefetch, steps, **wanted))
