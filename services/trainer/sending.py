"""Objects of a user's program on their way to the processes of its run, by Ray's own store and serialisation.

They go nowhere else: into no file, and through no network but that of the cluster whose session the program is part of.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import ray

from lowdimfa.errors import InputError, in_words
from lowdimfa.services.recovery.deadlines import START_LIVENESS
from lowdimfa.services.spec.given import Given
from lowdimfa.services.trainer.request import RunRequest


@dataclass(frozen=True)
class _Stored:
    """Loads an object from Ray's store, into which the program has put it."""

    key: str
    marker: str
    reference: Any
    patience: float

    def __call__(self) -> Callable[..., Any]:
        try:
            # What Ray maps from its store can't be written to, as the user's own can.
            return deepcopy(ray.get(self.reference, timeout=self.patience))  # type: ignore[no-any-return]
        except Exception as error:  # whatever the user's classes raise, or Ray
            raise InputError(
                self.key,
                f"{self.marker}, which can't be loaded in another process ({in_words(error.__cause__ or error)})",
                "one whose modules every process can import",
                "Name the folder of your modules as user_code.",
            ) from error


def sent(request: RunRequest) -> RunRequest:
    """Return a request whose objects are in Ray's store, from which each process takes those that it needs.

    Raises
    ------
    InputError
        One can't be serialised.
    """
    patience = START_LIVENESS * request.parsed().run.liveness_seconds

    def stored(value: Any, *path: str) -> Any:
        if isinstance(value, dict):
            return {key: stored(one, *path, str(key)) for key, one in value.items()}
        return _stored(value, ".".join(path), patience) if isinstance(value, Given) else value

    return replace(request, specification=stored(request.specification))


def _stored(given: Given, key: str, patience: float) -> Given:
    try:
        reference = ray.put(given.load())
    except Exception as error:  # whatever the user's objects raise, or Ray
        raise InputError(
            key,
            f"{given!r}, which can't be sent to other processes ({in_words(error.__cause__ or error)})",
            "one that can be serialised",
            'Give what makes it instead, or use engine="local".',
        ) from error
    return Given(given.name, _Stored(key, repr(given), reference, patience), given.whole)
