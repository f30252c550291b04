"""What each key of a specification may hold, in words: one source for refusals and for the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdimfa.services.spec.schema import Specification

Path = tuple[str | int, ...]
Schema = Mapping[str, Any]

ROOT: Schema = Specification.model_json_schema()

_KINDS = {
    "boolean": "true or false",
    "null": "null",
    "string": "a string",
    "object": "a mapping",
}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def resolved(schema: Schema) -> Schema:
    """Follow a reference, and among alternatives take the one with keys, items or values of its own."""
    if "$ref" in schema:
        return resolved(ROOT["$defs"][schema["$ref"].rpartition("/")[2]])
    for branch in map(resolved, schema.get("anyOf", ())):
        if branch.keys() & {"properties", "items", "additionalProperties"}:
            return branch
    return schema


def find(path: Sequence[str | int]) -> Schema:
    """Return the schema of the value at a path; it is empty where anything plain may stand."""
    schema = ROOT
    for part in path:
        parent = resolved(schema)
        if "properties" in parent:
            schema = parent["properties"].get(part, {})
        else:
            schema = parent.get("items") or parent.get("additionalProperties") or {}
    return schema


def keys(schema: Schema) -> list[str]:
    """Return the keys that a section may have."""
    return list(resolved(schema).get("properties", ()))


def describe(schema: Schema) -> str:
    """Say in words what may stand at a place, for example ``an integer of at least 1 or null``."""
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        return " or ".join(describe(branch) for branch in schema["anyOf"])
    schema = resolved(schema)
    if "properties" in schema:
        few = keys(schema)[:3]
        return f"a mapping with keys {'' if few == keys(schema) else 'such as '}{listed(few)}"
    if "enum" in schema or "const" in schema:
        return listed([repr(value) for value in schema.get("enum", [schema.get("const")])], "or")
    kind = schema.get("type")
    if kind in ("integer", "number"):
        bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
        return " ".join(["an integer" if kind == "integer" else "a number", " and ".join(bounds)]).rstrip()
    if schema.get("minLength"):
        return "a non-empty string"
    return _KINDS.get(str(kind), "a finite number, string, true, false, null, list or mapping")


def listed(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
