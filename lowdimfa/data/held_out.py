"""Test splits of data that come without one, or from a path of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lowdimfa.data.base import Dataset, task_of
from lowdimfa.data.splits import Split, SubSplit
from lowdimfa.errors import InputError
from lowdimfa.generators import reproducible
from lowdimfa.paths import expand
from lowdimfa.tickets import derive_seed


def with_test(name: str, read: Callable[[str], Split], path: str, test: str | float, seed: int) -> Dataset:
    """Return the data of a path, with a test split.

    Parameters
    ----------
    name
        Of the factory.
    read
        Reads a path.
    path
        Of the training samples.
    test
        Path of the test samples, or what part of the samples of ``path`` they are.
    seed
        Decides which these are, and the order of the training samples: files are often sorted by class, and
        ``data.validation`` and ``train.limit_samples`` take what is last or first.

    Raises
    ------
    InputError
        There are no samples, or the part leaves none on one side.
    """
    whole = read(path)
    order = torch.randperm(
        len(whole), generator=torch.Generator().manual_seed(derive_seed(seed, "test split"))
    )
    held: Split
    if isinstance(test, str):
        kept, held = len(whole), read(test)
        for where, split in ((path, whole), (test, held)):
            if len(split) == 0:
                raise InputError(where, "no samples", "at least one")
    else:
        fraction = isinstance(test, float) and 0 < test < 1
        kept = len(whole) - (round(len(whole) * test) if fraction else 0)
        if not 0 < kept < len(whole):
            expected = f"a path, or a fraction of {len(whole)} samples that leaves some on both sides"
            raise InputError(f"{name}: test", repr(test), expected)
        held = SubSplit(whole, order[kept:].sort().values)
    train = SubSplit(whole, order[:kept])
    with reproducible(0):
        first = train.targets(torch.tensor([0]))
    return Dataset(name, train, held, task_of(first))


def class_names(classes: Sequence[str], where: str) -> list[str]:
    """Return the names of classes in the order of their numbers.

    Raises
    ------
    InputError
        One is no text, as YAML has it for a bare ``no``, or is there twice.
    """
    names = list(classes)
    if any(not isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(
            where, repr(names), "a different text for each class", "Quote names such as no and 1."
        )
    return names


def existing(path: str, where: str) -> Path:
    """Return a path with ``~`` and variables filled in.

    Raises
    ------
    InputError
        There is nothing, or a variable is not set.
    """
    try:
        found = expand(path)
    except ValueError as error:
        raise InputError(where, f"{path!r} ({error})", "a path") from error
    if not found.exists():
        raise InputError(str(found), "no file or folder", f"what {where} names, on every node")
    return found
