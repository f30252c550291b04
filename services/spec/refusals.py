"""Turn what pydantic found wrong into one error for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lowdimfa.errors import InputError
from services.spec.expectations import ROOT, Path, describe, find, keys, resolved

_UNKNOWN = ("extra_forbidden", "invalid_key")


class Refusal(NamedTuple):
    """One thing that is wrong: where, what was found, what was expected, and what to do about it."""

    path: Path
    found: str
    expected: str
    hint: str = ""


def as_input_error(
    error: ValidationError, mapping: Mapping[str, Any], source: str, overridden: Iterable[Path]
) -> InputError:
    """Return one error that names everything that is wrong, unknown keys first.

    Parameters
    ----------
    error, mapping
        What pydantic raised, and for what.
    source
        The file, for messages.
    overridden
        Paths whose values come from ``--set`` and not from the file.
    """
    first, *others = refusals_of(error, mapping)
    hint = first.hint
    if others:
        lines = [f"  {InputError(_where(other.path, source, overridden), *other[1:])}" for other in others]
        hint = "\n".join([f"{hint} Also wrong:".strip(), *lines])
    return InputError(_where(first.path, source, overridden), first.found, first.expected, hint)


def refusals_of(error: ValidationError, mapping: Mapping[str, Any]) -> list[Refusal]:
    """Return everything that pydantic found wrong with a mapping, unknown keys first."""
    # A misspelt key is often why a required one is missing, so it comes first.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    refusals: dict[Path, Refusal] = {}
    for detail in details:  # a value that fits none of several types is reported once
        refusal = _refusal(detail, mapping)
        refusals.setdefault(refusal.path, refusal)
    return [refusal for path, refusal in refusals.items() if not _has_inner(path, refusals)]


def dotted(path: Path) -> str:
    """Write a path as in ``--set``."""
    return ".".join(map(str, path))


def _has_inner(path: Path, paths: Iterable[Path]) -> bool:
    """Whether something inside the value at ``path`` is reported, which says more than that it is wrong."""
    return any(len(other) > len(path) and other[: len(path)] == path for other in paths)


def _where(path: Path, source: str, overridden: Iterable[Path]) -> str:
    for override in overridden:
        shared = min(len(override), len(path))
        if shared and override[:shared] == path[:shared]:
            return f"--set {dotted(path)}"
    return f"{source}: {dotted(path)}" if path else source


def _refusal(detail: ErrorDetails, mapping: Mapping[str, Any]) -> Refusal:
    path = _path(detail, mapping)
    kind, value, schema = detail["type"], detail["input"], find(path)
    if kind == "refusal":
        context = detail["ctx"]
        return Refusal((*path, *context["key"]), context["found"], context["expected"], context["hint"])
    if kind in _UNKNOWN:
        known = keys(find(path[:-1]))
        return Refusal(path, "an unknown key", f"one of {', '.join(known)}", _nearest(str(path[-1]), known))
    if kind == "missing":
        return Refusal(path, "nothing", describe(schema))
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return Refusal(path, f"the key {_short(value)}", describe(find(path[:-1])), _quoting(kind, value))
    if kind == "recursion_loop":
        return Refusal(path, "a value that contains itself", describe(schema))
    options = resolved(schema).get("enum", ())
    hint = _nearest(str(value), options, sections=False) if options else _quoting(kind, value)
    return Refusal(path, shown(value), describe(schema), hint)


def _path(detail: ErrorDetails, mapping: Mapping[str, Any]) -> Path:
    """Return where the error is; pydantic mixes the names of alternatives into its location."""
    path: list[str | int] = []
    current: Any = mapping
    for part in detail["loc"]:
        in_list = isinstance(current, list) and isinstance(part, int)
        if in_list or (isinstance(current, dict) and part in current):
            current = current[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _nearest(word: str, known: Iterable[str], sections: bool = True) -> str:
    spelt = {choice.lower(): choice for choice in known}
    near = [spelt[choice] for choice in get_close_matches(word.lower(), spelt, n=1)]
    if not near and sections:
        near = [f"{section}.{word}" for section in keys(ROOT) if word in keys(find((section,)))][:1]
    return f"Did you mean {near[0]!r}?" if near else ""


def _quoting(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"Quote it if that is meant: '{shown(value)}'."
    return ""


def shown(value: object) -> str:
    """Show a value as a person would say it, shortened."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {_short(value)}"
    if isinstance(value, dict):
        return f"a mapping with keys {_short(list(value))[1:-1]}" if value else "an empty mapping"
    if value == []:
        return "an empty list"
    return f"the list {_short(value)}" if isinstance(value, list) else _short(value)


def _short(value: object, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
