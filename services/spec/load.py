"""Load a specification: read its YAML, apply overrides, validate; whatever is wrong is one `InputError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from lowdimfa.errors import InputError
from lowdimfa.services.spec.dialect import read_yaml, write_yaml
from lowdimfa.services.spec.expectations import Path, describe, find
from lowdimfa.services.spec.given import KEPT
from lowdimfa.services.spec.refusals import (
    Refusal,
    Settings,
    as_input_error,
    dotted,
    named,
    refusals_of,
    shown,
)
from lowdimfa.services.spec.schema import Specification

Overrides = Sequence[str] | Mapping[str, Any]

_BY_BLOCK = (["train", "per_block"], ["placement", "replicas"], ["placement", "threads_per_block"])
"""Where the keys are indexes of blocks."""


def indexed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification that went through JSON, where indexes of blocks became text, with numbers in their place."""
    found = deepcopy(dict(plain))
    for section, key in _BY_BLOCK:
        value = found.get(section, {}).get(key)
        if isinstance(value, dict):
            found[section][key] = {
                int(index) if index.isdigit() else index: own for index, own in value.items()
            }
    return found


def load_specification(path: FilePath, overrides: Overrides = (), *, kept: bool = False) -> Specification:
    """Load a specification from a YAML file.

    Parameters
    ----------
    path
        The file. Callers that import modules beside it keep its directory: it isn't part of the result.
    overrides
        Settings ``a.b=value`` that replace or add to those of the file, in order, where the value is YAML; or values by
        ``a.b``.
    kept
        Whether a run has written it, which may have been given objects: they stay as what can't be called any more.

    Raises
    ------
    InputError
        The file can't be read, is not YAML, or doesn't define a valid run; or an override doesn't fit. The
        message names file and key (or line), what was found and what was expected.
    """
    return parse_text(text_of(path), str(path), overrides, kept=kept)


def load_unchecked(path: FilePath, overrides: Overrides) -> Specification:
    """Load a specification as `load_specification` does, without a look at the arguments of factories, which takes torch.

    It is for what can be made ready while torch is imported.
    """
    return _overridden(_mapping(text_of(path), str(path)), str(path), overrides)[0]


def text_of(path: FilePath) -> str:
    """Return the text of a specification's file.

    Raises
    ------
    InputError
        It can't be read.
    """
    source = str(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(source, "a file that is not UTF-8 text", "a YAML file") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(source, f"a file that can't be read ({reason})", "a readable YAML file") from error


def parse_text(text: str, source: str, overrides: Overrides = (), *, kept: bool = False) -> Specification:
    """Make a specification of YAML text, as `load_specification` does of a file's.

    Raises
    ------
    InputError
        It doesn't define a valid run.
    """
    return _checked(*_overridden(_mapping(text, source), source, overrides, KEPT if kept else None))


def _mapping(text: str, source: str) -> dict[Any, Any]:
    value = read_yaml(text, source)
    if not isinstance(value, dict):
        raise _not_a_mapping(value, source)
    return value


def violations(text: str) -> list[tuple[str, str]]:
    """Return what is wrong with a specification's YAML text, as pairs of a key (``train.steps``) and words.

    What is not a mapping in YAML at all is one violation of the key ``""``; so is the note that there are more.
    """
    try:
        value = read_yaml(text, "specification")
    except InputError as error:
        return [("", error.message)]
    if not isinstance(value, dict):
        return [("", _not_a_mapping(value, "specification").message)]
    try:
        wrong, more = _unfit(Specification.model_validate(value))
    except ValidationError as error:
        wrong, more = refusals_of(error, value)
    said = [
        (dotted(each.path), f"found {each.found}; expected {each.expected}. {each.hint}".strip())
        for each in wrong
    ]
    return [*said, *([("", "and more is wrong")] if more else [])]


def parse_specification(mapping: Mapping[str, Any], source: str, overrides: Overrides = ()) -> Specification:
    """Make a specification of plain values, as `load_specification` does of a file's.

    Parameters
    ----------
    mapping
        The sections.
    source
        What to call it in messages.
    overrides
        As there.

    Raises
    ------
    InputError
        It doesn't define a valid run.
    """
    if not isinstance(mapping, Mapping):
        raise _not_a_mapping(mapping, source)
    return _checked(*_overridden(dict(mapping), source, overrides))


def to_yaml(spec: Specification) -> str:
    """Return the specification with every default written out; without objects it loads back to an equal one."""
    return write_yaml(spec.model_dump())


def _overridden(
    mapping: dict[Any, Any], source: str, overrides: Overrides, context: Mapping[str, Any] | None = None
) -> tuple[Specification, Settings]:
    settings, pairs = settings_of(overrides, source)
    for path, value in pairs:
        mapping = with_setting(mapping, path, value, settings)
    try:
        return Specification.model_validate(mapping, context=context), settings
    except ValidationError as error:
        raise as_input_error(error, mapping, settings) from error


def _checked(specification: Specification, settings: Settings) -> Specification:
    wrong, more = _unfit(specification)
    if wrong:
        raise named(wrong, more, settings)
    return specification


def settings_of(overrides: Overrides, source: str) -> tuple[Settings, list[tuple[Path, Any]]]:
    """Return overrides as paths and values, and by what names messages about ``source`` have them."""
    if isinstance(overrides, Mapping):
        form, pairs = "overrides['{}']", [(_path(key), value) for key, value in overrides.items()]
    else:
        form, pairs = "--set {}", list(map(_setting, overrides))
    return Settings(source, [path for path, _ in pairs], form), pairs


def _unfit(specification: Specification) -> tuple[list[Refusal], bool]:
    # Only here: it knows torch's factories, and what only reads or names settings needs no torch.
    from lowdimfa.services.spec.arguments import argument_refusals

    return argument_refusals(specification)


def _setting(override: str) -> tuple[Path, Any]:
    """Split ``a.b=value`` into a path and a value."""
    key, equals, text = override.partition("=")
    if not equals or "" in _path(key):
        raise InputError(f"--set {override}", "no key and value", "a setting such as train.steps=100")
    return _path(key), read_yaml(text, f"--set {key}")


def _path(key: str) -> Path:
    parts = key.strip().split(".")
    # The indexes of blocks are the only keys that are not strings.
    if parts[:2] in _BY_BLOCK and len(parts) > 2 and parts[2].isdecimal():
        return (*parts[:2], int(parts[2]), *parts[3:])
    return tuple(parts)


def with_setting(
    mapping: dict[Any, Any], path: Path, value: Any, settings: Settings, above: Path = ()
) -> dict[Any, Any]:
    """Return the mapping that stands at ``above`` with the value at ``path`` below it replaced or added."""
    key, *rest = path
    here = (*above, key)
    if not rest:
        return mapping | {key: value}
    inner = mapping.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        name, found = settings.override((*here, *rest)), f"{shown(inner)} at {dotted(here)}"
        raise InputError(name, found, describe(find(here)))
    return mapping | {key: with_setting(inner, tuple(rest), value, settings, here)}


def _not_a_mapping(value: object, source: str) -> InputError:
    found = "nothing" if value is None else shown(value)
    return InputError(source, found, "a mapping with keys model, data and train, and optionally others")
