"""A run's data, as its specification says it: loaded, and read ahead."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lowdimfa.data.base import BatchOrder, Dataset, as_dataset
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.imports import call_factory
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.given import Given, opened
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Types

Factory = str | Callable[..., Any]


@dataclass(frozen=True)
class Source:
    """Where the data of a run come from.

    Attributes
    ----------
    factory, args
        What makes them, and its arguments.
    validation, limit, seed
        ``data.validation``, ``train.limit_samples`` and ``train.seed`` of the specification.
    """

    factory: Factory
    args: dict[str, Any]
    validation: float
    limit: int | None
    seed: int

    @classmethod
    def of(cls, specification: Specification, factory: Factory) -> Source:
        """Return that of a run."""
        data, train = specification.data, specification.train
        return cls(factory, dict(data.args), data.validation, train.limit_samples, train.seed)

    def load(self) -> Dataset:
        """Call the factory, and apply the limits that the specification sets."""
        with reproducible(derive_seed(self.seed, "data")):
            made = call_factory(self.factory, deepcopy(self.args), "data.factory")
        dataset = as_dataset(made, "data.factory")
        if self.validation:
            dataset = dataset.with_validation(self.validation)
        return dataset if self.limit is None else dataset.limited(self.limit)


@dataclass(frozen=True)
class _Makes:
    """Makes a run's reader in another process."""

    source: Source
    order: BatchOrder
    types: Types | None

    def __call__(self) -> Reader:
        return Reader(self.source.load(), self.order, self.types)


@dataclass(frozen=True)
class _Packed:
    """A factory that was given as an object, on its way to another process, which has none of the user's program."""

    pickled: bytes

    @classmethod
    def of(cls, given: Given) -> _Packed:
        from ray import cloudpickle  # late: only objects need it

        try:
            return cls(cloudpickle.dumps(given.load()))
        except Exception as error:  # whatever the user's objects raise
            raise InputError(
                "data.workers",
                f"{given!r} as data, which can't be sent to other processes ({in_words(error)})",
                "one that can be serialised, or 0 workers",
                "Give what makes it instead.",
            ) from error

    def __call__(self, **args: Any) -> Any:
        from ray import cloudpickle

        return cloudpickle.loads(self.pickled)(**args)


def load_dataset(specification: Specification) -> Dataset:
    """Load the data of a run."""
    return Source.of(specification, opened(specification.data.factory)).load()


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

    factory = data.factory
    source = Source.of(specification, _Packed.of(factory) if isinstance(factory, Given) else factory)
    makes = _Makes(source, reader.order, reader.types)
    return WorkerReader(reader, Ahead(makes, data.workers, data.prefetch, steps, **wanted))
