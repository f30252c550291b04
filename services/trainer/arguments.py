"""The arguments of `DecoupledTrainer`: how a run may be said, and what is said of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import nn

from lowdimfa.errors import InputError
from lowdimfa.services.spec import Specification, load_specification, parse_specification
from lowdimfa.services.spec.section import nearest
from lowdimfa.services.trainer.objects import described

Model = nn.Module | Sequence[nn.Module]
Spelt = Specification | Mapping[str, Any] | str | Path
"""How a specification may be given."""

_KEYS = "optimizer|scheduler|loss|steps|epochs|batch_size|microbatches|seed"
_SAID = (
    (re.compile(r"^the arguments: "), ""),
    (re.compile(r"\b(model|data)\.factory\b"), r"\1"),
    (re.compile(r"\bmodel\.blocks\b"), "blocks"),
    (re.compile(rf"\btrain\.({_KEYS})\b(\.factory\b)?"), r"\1"),
    (re.compile(r"\ba factory that returned "), ""),
)
"""What keys of a specification are called by who gave arguments."""


@contextmanager
def said_of_arguments() -> Iterator[None]:
    """Let errors name arguments in place of the keys of a specification."""
    try:
        yield
    except InputError as error:
        for pattern, words in _SAID:
            error.message = pattern.sub(words, error.message)
        error.args = (error.message,)
        raise


P = ParamSpec("P")
T = TypeVar("T")


def near_misses(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function name the argument that may have been meant by a name that it doesn't have."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                meant = nearest(name, known) or _of_section(name)
                called_so = getattr(function, "__qualname__", "")
                said = f"{called_so}() got an unexpected keyword argument {name!r}"
                raise TypeError(f"{said}. {meant}" if meant else said)
        return function(*args, **kwargs)

    return called


def _of_section(name: str) -> str:
    sections = Specification.model_fields.items()
    found = (key for key, section in sections if name in getattr(section.annotation, "model_fields", ()))
    return next((f"Did you mean overrides={{'{key}.{name}': …}}?" for key in found), "")


def specified(
    specification: Spelt | None, objects: Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any]
) -> Specification:
    """Return the one specification that was given: itself, or in objects.

    Raises
    ------
    InputError
        It isn't valid, or there are objects beside it.
    """
    if specification is None:
        return parse_specification(described(**objects), "the arguments", overrides)
    if beside := [name for name, value in objects.items() if value is not None]:
        expected = "either, as a specification says all of that"
        raise InputError(", ".join(beside), "a specification beside it", expected, "Change it by overrides.")
    if isinstance(specification, str | Path):
        return load_specification(Path(specification), overrides)
    if isinstance(specification, Specification):
        specification = specification.model_dump()
    return parse_specification(specification, "the specification", overrides)
