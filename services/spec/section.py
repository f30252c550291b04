"""What all sections of a specification have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from lowdimfa.services.spec.given import Given

TEST_NUMBERS = ("test_loss", "test_accuracy", "test_perplexity", "test_bits_per_byte")
"""What evaluations tell of any run, or of any language model."""


def less_is_better(metric: str) -> bool:
    """Whether the smaller of two values of one of `TEST_NUMBERS` is the better one."""
    return metric != "test_accuracy"


_NAME = r"[^\W\d]\w*"
IMPORT_PATTERN = rf"{_NAME}(\.{_NAME})*[.:]{_NAME}"

ImportPath = Annotated[
    str,
    Field(
        pattern=f"^{IMPORT_PATTERN}$",
        json_schema_extra={"expected": "an import path such as 'package.module:factory'"},
    ),
]
Factory = ImportPath | SkipJsonSchema[Given]
"""In a file, an import path; from Python, an object in its place."""

LayerName = Annotated[str, Field(min_length=1)]
Args = Annotated[
    dict[str, JsonValue], Field(json_schema_extra={"expected": "a mapping of arguments by name"})
]


def refusal(key: tuple[str | int, ...], found: str, expected: str, hint: str = "") -> PydanticCustomError:
    """Return an error about how settings go together; ``key`` leads from the section to the one at fault."""
    context: dict[str, Any] = {"key": key, "found": found, "expected": expected, "hint": hint}
    return PydanticCustomError("refusal", "settings that don't go together", context)


def shortened(value: object, length: int = 80) -> str:
    """Return how Python writes a value, cut to a length."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"


def nearest(word: str, known: Iterable[str]) -> str:
    """Ask whether a known word was meant; nothing if none is near."""
    spelt = {choice.lower(): choice for choice in known}
    near = [spelt[choice] for choice in get_close_matches(word.lower(), spelt, n=1)]
    return f"Did you mean {near[0]!r}?" if near else ""


def of(config: type, name: str, extra: dict[str, JsonValue] | None = None) -> Any:
    """Return a key of a section with default, bounds and meaning of a setting of the library.

    Parameters
    ----------
    config
        A dataclass of `lowdimfa.config`.
    name
        Of the setting.
    extra
        What the schema says beside that.
    """
    defined = {each.name: each for each in fields(config)}[name]
    return Field(defined.default, json_schema_extra=extra, **defined.metadata)


def taken(section: BaseModel, config: type) -> dict[str, Any]:
    """Return those values of a section that a dataclass of the library has too, by name."""
    names = [each.name for each in fields(config) if "description" in each.metadata]
    return {name: getattr(section, name) for name in names}


class Section(BaseModel):
    """A mapping of the specification: no unknown keys, no conversions, no changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: _word(value, cls.model_fields.get(key)) for key, value in values.items()}


class Rule(Section):
    """A rule of the user's own by import path, with arguments."""

    factory: Factory = Field(description="The class: called with what all of its kind are given, and `args`.")
    args: Args = Field({}, description="Keyword arguments of the class.")


class MetricSection(Section):
    """A metric by import path, with arguments."""

    factory: Factory = Field(
        description="A class with `reset`, `update` and `compute`, called with `args`; or a function of outputs and "
        "targets, which gets `args` beside them, and whose values are averaged over the samples."
    )
    args: Args = Field({}, description="Keyword arguments of the class or function.")


_WORDS = {False: {"off", "no", "false"}, True: {"on", "yes", "true"}}
"""What YAML 1.1 reads as false and as true."""


def _word(value: object, field: FieldInfo | None) -> object:
    """Return the word of an enumeration that YAML took for true or false; any other value as it is."""
    if isinstance(value, bool) and field is not None and get_origin(field.annotation) is Literal:
        return next((word for word in get_args(field.annotation) if word in _WORDS[value]), value)
    return value
