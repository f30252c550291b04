"""Turn what pydantic found wrong into one error for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lowdimfa.errors import InputError
from lowdimfa.services.spec.expectations import ROOT, Path, describe, find, keys, resolved
from lowdimfa.services.spec.given import IN_A_FILE, is_marker
from lowdimfa.services.spec.section import nearest, shortened

MOST_NAMED = 10
"""Things wrong that one answer names. It has to fit into a line of a log, and into the metadata of a call."""

_LONGEST_PATH = 120
_UNKNOWN = ("extra_forbidden", "invalid_key")


class Refusal(NamedTuple):
    """One thing that is wrong: where, what was found, what was expected, and what to do about it."""

    path: Path
    found: str
    expected: str
    hint: str = ""


class Settings(NamedTuple):
    """Where values come from: a file, or what replaces some of its values.

    Attributes
    ----------
    source
        The file, for messages.
    overridden
        Paths whose values are not from there.
    form
        How who gave those has said it.
    """

    source: str
    overridden: Sequence[Path] = ()
    form: str = "--set {}"

    def override(self, path: Path) -> str:
        """Return what to call an override."""
        return self.form.format(dotted(path))

    def where(self, path: Path) -> str:
        """Return what to call a place."""
        for override in self.overridden:
            shared = min(len(override), len(path))
            if shared and override[:shared] == path[:shared]:
                return self.override(path)
        return f"{self.source}: {dotted(path)}" if path else self.source


def as_input_error(error: ValidationError, mapping: Mapping[str, Any], settings: Settings) -> InputError:
    """Return one error that names what is wrong, unknown keys first, at most `MOST_NAMED` things.

    Parameters
    ----------
    error, mapping
        What pydantic raised, and for what.
    settings
        Where its values come from.
    """
    return named(*refusals_of(error, mapping), settings)


def named(refusals: Sequence[Refusal], more: bool, settings: Settings) -> InputError:
    """Return one error that names all of these things, and says whether there are more."""
    first, *others = refusals
    hint = first.hint
    if others:
        lines = [f"  {InputError(settings.where(other.path), *other[1:])}" for other in others]
        hint = "\n".join([f"{hint} Also wrong:".strip(), *lines, *(["  and more"] if more else [])])
    return InputError(settings.where(first.path), first.found, first.expected, hint)


def refusals_of(error: ValidationError, mapping: Mapping[str, Any]) -> tuple[list[Refusal], bool]:
    """Return what pydantic found wrong with a mapping, unknown keys first, and whether there is more than that."""
    # A misspelt key is often why a required one is missing, so it comes first.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    refusals: dict[Path, Refusal] = {}
    outer: set[Path] = set()  # something inside these is reported, which says more than that they are wrong
    for detail in details:  # a value that fits none of several types is reported once
        refusal = _refusal(detail, mapping)
        if len(refusals) == 2 * MOST_NAMED and refusal.path not in refusals:
            break
        refusals.setdefault(refusal.path, refusal)
        outer |= {refusal.path[:length] for length in range(len(refusal.path))}
    found = [refusal for path, refusal in refusals.items() if path not in outer]
    return found[:MOST_NAMED], len(found) > MOST_NAMED


def dotted(path: Path) -> str:
    """Write a path as in ``--set``, shortened."""
    text = ".".join(map(str, path))
    return text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}…"


def _refusal(detail: ErrorDetails, mapping: Mapping[str, Any]) -> Refusal:
    path = _path(detail, mapping)
    kind, value, schema = detail["type"], detail["input"], find(path)
    if kind == "refusal":
        context = detail["ctx"]
        return Refusal((*path, *context["key"]), context["found"], context["expected"], context["hint"])
    if kind in _UNKNOWN:
        known = keys(find(path[:-1]))
        return Refusal(path, "an unknown key", f"one of {', '.join(known)}", _meant(str(path[-1]), known))
    if kind == "missing":
        return Refusal(path, "nothing", describe(schema))
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return Refusal(path, f"the key {shortened(value)}", describe(find(path[:-1])), _quoting(kind, value))
    if kind == "recursion_loop":
        return Refusal(path, "a value that contains itself", describe(schema))
    options = resolved(schema).get("enum", ())
    hint = nearest(str(value), options) if options else _quoting(kind, value)
    return Refusal(path, shown(value), describe(schema), hint)


def _path(detail: ErrorDetails, mapping: Mapping[str, Any]) -> Path:
    """Return where the error is; pydantic mixes the names of alternatives into its location."""
    path: list[str | int] = []
    current: Any = mapping
    found = False
    for part in detail["loc"]:
        in_list = isinstance(current, list) and isinstance(part, int)
        found = in_list or (isinstance(current, dict) and part in current)
        if found:
            current = current[part]
            path.append(part)
    # A missing key isn't in the mapping, nor is one that is no string: pydantic shows that as a string.
    if not found and detail["type"] in ("missing", *_UNKNOWN):
        path.append(detail["loc"][-1])
    return tuple(path)


def _meant(word: str, known: Iterable[str]) -> str:
    """Ask whether a known key was meant, or a key of another section; nothing if none is near."""
    sections = (f"{section}.{word}" for section in keys(ROOT) if word in keys(find((section,))))
    elsewhere = next(sections, None)
    return nearest(word, known) or (f"Did you mean {elsewhere!r}?" if elsewhere else "")


def _quoting(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "Quote it if a string is meant."
    return IN_A_FILE if is_marker(value) else ""


def shown(value: object) -> str:
    """Show a value as a person would say it, shortened."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {shortened(value)}"
    if isinstance(value, dict):
        return f"a mapping with keys {shortened(list(value))[1:-1]}" if value else "an empty mapping"
    if value == []:
        return "an empty list"
    return f"the list {shortened(value)}" if isinstance(value, list) else shortened(value)
