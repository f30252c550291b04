"""The arguments of `DecoupledTrainer`: how a run may be said, and what is said of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import nn

from lowdimfa.errors import InputError
from lowdimfa.services.spec import Specification, load_specification, parse_specification
from lowdimfa.services.spec.section import nearest, shortened
from lowdimfa.services.trainer.objects import described

Model = nn.Module | Sequence[nn.Module]
Spelt = Specification | Mapping[str, Any] | str | Path
"""How a specification may be given."""

_KEYS = "optimizer|scheduler|loss|steps|epochs|batch_size|microbatches|seed|metrics"
_SAID = (
    (re.compile(r"^the arguments: "), ""),
    (re.compile(r"\b(?<!\[')(model|data)\.factory\b"), r"\1"),
    (re.compile(r"\b(?<!\[')model\.blocks\b"), "blocks"),
    (re.compile(rf"\b(?<!\[')train\.({_KEYS})\b(\.factory\b)?"), r"\1"),
    (re.compile(r"\b(metrics\.\w+)\.factory\b"), r"\1"),
    (re.compile(r"\ba factory that returned "), ""),
)
"""What keys of a specification are called by who gave arguments, but for those in ``overrides``."""


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
    overrides = _of_overrides(overrides)
    if specification is None:
        return parse_specification(_plain(described(**objects)), "the arguments", overrides)
    if beside := [name for name, value in objects.items() if value is not None]:
        expected = "either, as a specification says all of that"
        raise InputError(", ".join(beside), "a specification beside it", expected, "Change it by overrides.")
    if isinstance(specification, str | Path):
        return load_specification(Path(specification), overrides)
    if isinstance(specification, Specification):
        specification = specification.model_dump()
    return parse_specification(_plain(specification), "the specification", overrides)


def _of_overrides(overrides: object) -> Sequence[str] | Mapping[str, Any]:
    expected = "a mapping by keys, such as {'run.keep': 3}, or a list of words such as 'run.keep=3'"
    if not isinstance(overrides, Mapping | Sequence) or isinstance(overrides, str):
        raise InputError("overrides", repr(overrides), expected)
    for key in overrides:
        if not isinstance(key, str):
            raise InputError("overrides", repr(key), expected)
    return _plain(overrides)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """Return plain data with numbers as Python has them, in place of NumPy's."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def require_fit(**given: object) -> None:
    """Refuse arguments that no run can do with, by their names.

    Raises
    ------
    InputError
        The first one.
    """
    for name, value in given.items():
        fits, expected = _FIT[name]
        if not fits(value):
            raise InputError(name, shortened(value), expected)


def require_ray(engine: str, address: str | None) -> None:
    """Refuse the address of a cluster for a run that no cluster is to have.

    Raises
    ------
    InputError
        It has one, and the engine is another than Ray.
    """
    if engine == "local" and address is not None:
        expected = "a cluster's address with the engine 'ray' alone: 'local' trains in this process"
        raise InputError("--address", f"{address} and --engine local", expected)


def goes_on(run_dir: str | Path | None, resume: bool, resume_step: int | None) -> bool:
    """Return whether a run goes on from a checkpoint.

    Raises
    ------
    InputError
        It does, and nobody says which run.
    """
    if run_dir is None and (resume or resume_step is not None):
        where = "--resume" if resume_step is None else "--resume-step"
        raise InputError(where, "no --run-dir", "the directory of the run to continue")
    return resume or resume_step is not None


def _is_path(value: object) -> bool:
    return value is None or (isinstance(value, str | Path) and bool(str(value)))


_FIT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "engine": (lambda value: value in ("ray", "local"), "'ray' or 'local'"),
    "run_dir": (_is_path, "the path of a folder, or an address"),
    "user_code": (
        lambda value: value is None or (_is_path(value) and Path(value).is_dir()),
        "the path of a folder that is there",
    ),
    "on_event": (lambda value: value is None or callable(value), "a function of an event"),
    "callbacks": (lambda value: isinstance(value, list | tuple), "a list of callbacks"),
}
"""By argument, whether a value fits, and what is expected."""
