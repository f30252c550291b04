"""A run's data, as its specification says it: loaded, and read ahead."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lowdimfa.data.base import BatchOrder, Dataset, as_dataset
from lowdimfa.data.reading import Reader
from lowdimfa.errors import InputError, in_words
from lowdimfa.generators import reproducible
from lowdimfa.imports import call_factory, resolve
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.data import DataSection
from lowdimfa.services.spec.given import Given, opened
from lowdimfa.tickets import derive_seed
from lowdimfa.values import Types


@dataclass(frozen=True)
class Source:
    """Where the data of a run come from.

    Attributes
    ----------
    data
        The specification's section.
    limit, seed
        ``train.limit_samples`` and ``train.seed``.
    """

    data: DataSection
    limit: int | None
    seed: int

    @classmethod
    def of(cls, specification: Specification) -> Source:
        """Return that of a run."""
        return cls(specification.data, specification.train.limit_samples, specification.train.seed)

    def load(self) -> Dataset:
        """Call the factory, and apply the limits that the specification sets."""
        data = self.data
        with reproducible(derive_seed(self.seed, "data")):
            made = call_factory(opened(data.factory), deepcopy(dict(data.args)), "data.factory")
        collate = None if data.collate is None else resolve(opened(data.collate), "data.collate")
        dataset = as_dataset(made, "data.factory", collate)
        if data.validation:
            dataset = dataset.with_validation(data.validation)
        return dataset if self.limit is None else dataset.limited(self.limit)

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
