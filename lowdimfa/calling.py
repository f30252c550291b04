"""How a layer is called: with what the layer before puts out, and by name with what else its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowdimfa.errors import InputError
from lowdimfa.values import Value

FACTORY_KEY = "model.factory"

_KINDS = inspect.Parameter
_POSITIONAL = (_KINDS.POSITIONAL_ONLY, _KINDS.POSITIONAL_OR_KEYWORD)
_BY_NAME = (_KINDS.POSITIONAL_OR_KEYWORD, _KINDS.KEYWORD_ONLY)


class Takes(NamedTuple):
    """What a layer's forward takes, as its signature says.

    Attributes
    ----------
    layer
        Its name.
    first
        The first parameter, which gets what the layer before puts out; empty where that has no name of its own.
    names
        What can be given by name.
    required
        Those of them that have no default, and the first one if it has none.
    unnamed
        Whether it takes what it doesn't name, by ``*args``.
    needed
        What later layers name: of a set, only that goes on. None where they aren't known, and all goes on.
    """

    layer: str
    first: str
    names: tuple[str, ...]
    required: frozenset[str]
    unnamed: bool
    needed: frozenset[str] | None = None


def takes_of(module: nn.Module, layer: str = "", needed: frozenset[str] | None = None) -> Takes:
    """Read the signature of a module's forward; ``**kwargs`` in it get nothing."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # it has none in Python
        return Takes(layer, "", (), frozenset(), unnamed=True, needed=needed)
    first = parameters[0].name if parameters and parameters[0].kind in _POSITIONAL else ""
    given = [each for each in parameters if each.kind in _BY_NAME]
    required = frozenset(
        each.name
        for each in parameters
        if each.default is _KINDS.empty and each.kind in (*_POSITIONAL, *_BY_NAME)
    )
    unnamed = any(each.kind is _KINDS.VAR_POSITIONAL for each in parameters)
    return Takes(layer, first, tuple(each.name for each in given), required, unnamed, needed)


def by_name(takes: Takes, stream: Value, side: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a layer gets by name: of the set that comes to it first, and of the data's inputs."""
    if isinstance(stream, Tensor):
        return {name: side[name] for name in takes.names if name in side and name != takes.first}
    both = {**side, **stream}
    return {name: both[name] for name in takes.names if name in both}


def call(module: nn.Module, takes: Takes, stream: Value, side: Mapping[str, Tensor]) -> Value:
    """Run a layer on one tensor or on a named set, with the inputs of the data beside it.

    Members of a set that it doesn't return go on unchanged to the layers that name them. A tensor that it returns of a
    set has the name of its first parameter, as long as others go on beside it.

    Raises
    ------
    InputError
        It returns something else than a tensor or a mapping from names to tensors.
    """
    if isinstance(stream, Tensor):
        output = module(stream, **by_name(takes, stream, side)) if side else module(stream)
        return output if isinstance(output, Tensor) else _named_set(takes, output, {})
    output = module(**by_name(takes, stream, side))
    if not isinstance(output, Tensor):
        return _named_set(takes, output, stream)
    others = _needed(takes, {name: tensor for name, tensor in stream.items() if name != takes.first})
    return _sorted({takes.first: output, **others}) if others else output


def _named_set(takes: Takes, output: object, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a layer puts out by name, with what goes on beside it; None stands for what is absent."""
    if not isinstance(output, Mapping):
        raise _not_named(takes, f"a {type(output).__name__}")
    together = {name: part for name, part in {**others, **output}.items() if part is not None}
    found = _needed(takes, together)
    for name, part in found.items():
        if not isinstance(part, Tensor):
            raise _not_named(
                takes, f"a {type(output).__name__} whose {name!r} is of type {type(part).__name__}"
            )
    if not found:
        names = ", ".join(map(repr, together)) or "nothing"
        raise _not_named(takes, f"a {type(output).__name__} of {names}, of which later layers take nothing")
    return _sorted(found)


def _needed(takes: Takes, members: dict[str, Any]) -> dict[str, Any]:
    if takes.needed is None:
        return members
    return {name: part for name, part in members.items() if name in takes.needed}


def _sorted(members: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: members[name] for name in sorted(members)}


def _not_named(takes: Takes, output: str) -> InputError:
    return InputError(
        FACTORY_KEY,
        f"layer {takes.layer!r}, which puts out {output}",
        "layers that put out one tensor, or a mapping from names to tensors",
        "Names tell the next layers what is what: return {'hidden_states': x, …} in place of a tuple.",
    )


def refuse_lacking(takes: Takes, stream: Value, side: Mapping[str, Tensor]) -> None:
    """Refuse a layer that isn't given what it needs, or of which one can't tell what it takes.

    Raises
    ------
    InputError
        So it is.
    """
    is_set, names = not isinstance(stream, Tensor), {*side, *(() if isinstance(stream, Tensor) else stream)}
    if not names:
        return
    there = f"{', '.join(map(repr, sorted(names)))}"
    if takes.unnamed:
        raise InputError(
            FACTORY_KEY,
            f"layer {takes.layer!r}, whose forward takes *args",
            f"a forward that names what it takes, where {there} are there by name",
            "Compile by train.compile, not in the model.",
        )
    given = {*by_name(takes, stream, side), *(() if is_set else {takes.first})}
    lacking = sorted(takes.required - given)
    if lacking or not given:
        raise InputError(
            FACTORY_KEY,
            f"layer {takes.layer!r}, whose forward needs {', '.join(map(repr, lacking)) or 'nothing that is there'}",
            f"one whose parameters are among {there}"
            if is_set
            else f"only {there} after the first parameter",
        )
