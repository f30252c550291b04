"""Python objects that stand in a specification where import paths would: no file can hold them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lowdimfa.errors import InputError

KEPT = {"kept": True}
"""The context in which the specification of a run is read, which may have had objects."""

IN_A_FILE = (
    "It stands for an object that was given to DecoupledTrainer, which no file can hold: name an import path, or "
    "call DecoupledTrainer with the object."
)
"""What to do about a marker in a file."""

_MARKER = re.compile(r"<object (.+)>")


class Given:
    """A factory that was given as an object.

    Parameters
    ----------
    name
        Shown in place of it.
    load
        Returns the factory; in another process, each time a new one.
    whole
        Whether it holds what it returns, as it holds a model with its weights.
    """

    def __init__(self, name: str, load: Callable[[], Callable[..., Any]], whole: bool = False) -> None:
        self.name, self.load, self.whole = name, load, whole

    @classmethod
    def of(cls, name: str, factory: Callable[..., Any], whole: bool = False) -> Given:
        """Return what stands for a factory of this process."""
        return cls(name, partial(_itself, factory), whole)

    def __repr__(self) -> str:
        return f"<object {self.name}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return how pydantic takes one: as it is; of a run's own specification its marker."""
        return core_schema.with_info_plain_validator_function(_given)


def opened(factory: str | Given) -> str | Callable[..., Any]:
    """Return an import path as it is, or the factory that was given in place of one."""
    return factory.load() if isinstance(factory, Given) else factory


def written(value: Any) -> Any:
    """Return plain data as a run's file has it: with markers in place of objects."""
    if isinstance(value, dict):
        return {key: written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [written(one) for one in value]
    return repr(value) if isinstance(value, Given) else value


def is_marker(value: object) -> bool:
    """Return whether a value is what stands for an object in a file."""
    return isinstance(value, str) and _MARKER.fullmatch(value) is not None


def _given(value: object, info: ValidationInfo) -> Given:
    if isinstance(value, Given):
        return value
    if info.context == KEPT and is_marker(value):
        name = str(value).removeprefix("<object ").removesuffix(">")
        return Given(name, partial(_gone, str(value)))
    raise PydanticCustomError("not_given", "no object")


def _itself(value: Any) -> Any:
    return value


def _gone(marker: str) -> Callable[..., Any]:
    raise InputError(
        "the run's specification",
        f"{marker}, an object of the program that began the run",
        "import paths",
        "That program can evaluate it: DecoupledTrainer(…, run_dir=…, resume=True).fit(), with the same objects.",
    )
