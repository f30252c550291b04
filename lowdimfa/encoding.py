"""States of optimisers, schedules and layers as plain data and tensors: exactly, or not at all.

What a ``state_dict`` holds goes into a checkpoint as JSON beside named tensors, and comes back as it was. JSON alone
would turn tuples into lists, integer keys into strings and NaN into nothing; pickling would run what a file says.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from lowdimfa.codecs import CODECS, TAGS, UnkeptError
from lowdimfa.errors import InputError

_MARK = "$"
"""The first character of a key that says what its value was; dictionaries with such keys of their own are marked too."""

_DEEPEST = 32
"""Levels of nesting; what is deeper most likely holds itself."""

_MADE_ANEW = (FunctionType, MethodType, BuiltinFunctionType, type)
"""What is not kept but taken from whoever takes the state: a newly built object has the same ones in the same places."""


class State(NamedTuple):
    """A state as what a checkpoint holds.

    Attributes
    ----------
    tensors
        By names that don't depend on where the network is cut; not copies.
    scalars
        The rest as what JSON can hold, which refers to tensors by name.
    """

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


class Encoder:
    """Makes plain data of a block's states, and gathers their tensors.

    Parameters
    ----------
    key
        The specification's key of whatever has the state, for refusals.

    Attributes
    ----------
    tensors
        Those of the states, not as copies, by the names under which the plain data refers to them.
    """

    def __init__(self, key: str) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._key = key
        self._names: dict[int, str] = {}

    def encode(self, value: object, *path: str) -> Any:
        """Return a state as what JSON can hold; `decode` makes the same of it.

        Parameters
        ----------
        value
            The state.
        path
            Where it is, for the names of its tensors and for refusals.

        Raises
        ------
        InputError
            Something in it can't be kept.
        """
        try:
            return self._encode(value, path, _DEEPEST)
        except UnkeptError as error:
            raise InputError(
                self._key,
                f"a state in which {'/'.join(error.path or path)} is {error.found}",
                "numbers, text, tensors, NumPy arrays, and lists, tuples, sets and dictionaries of them",
                "Leave it out of the state, or make it of these: nothing else comes back from a checkpoint as it was.",
            ) from error

    def _encode(self, value: Any, path: tuple[str, ...], levels: int) -> Any:
        if not levels:
            raise UnkeptError("nested without an end", path)
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if value.bit_length() < 64 else {f"{_MARK}int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {f"{_MARK}float": repr(value)}
        if kind is str:
            if not value.isascii():
                _require_text(value, path)
            return value
        if kind is Tensor:
            return {f"{_MARK}tensor": self._named(value, path)}
        if kind is list:
            return [self._encode(item, (*path, str(place)), levels - 1) for place, item in enumerate(value)]
        if kind is dict and all(type(key) is str and not key.startswith(_MARK) for key in value):
            return {key: self._encode(item, (*path, key), levels - 1) for key, item in value.items()}
        if isinstance(value, _MADE_ANEW):
            return {f"{_MARK}made": _name_of(value)}
        return self._marked(value, path, levels)

    def _marked(self, value: Any, path: tuple[str, ...], levels: int) -> Any:
        kind = (
            numpy.generic if isinstance(value, numpy.generic) else type(value)
        )  # a type for each number format
        if kind not in TAGS:
            raise UnkeptError(f"a {kind.__module__}.{kind.__qualname__}", path)
        tag = TAGS[kind]
        try:
            simpler = CODECS[tag][1].simpler(value)
        except UnkeptError as error:
            raise UnkeptError(error.found, path) from None
        if isinstance(value, Mapping):  # by the names of its keys, not by places in a list of pairs
            encoded = self._encode_pairs(value, path, levels)
            plain: Any = [simpler[0], encoded] if isinstance(value, defaultdict) else encoded
        else:
            plain = self._encode(simpler, path, levels - 1)
        if isinstance(value, set | frozenset):  # whose own order is no part of it
            plain.sort(key=repr)
        return {f"{_MARK}{tag}": plain}

    def _encode_pairs(self, value: Mapping[Any, Any], path: tuple[str, ...], levels: int) -> list[Any]:
        if any(isinstance(key, Tensor) for key in value):
            raise UnkeptError("a dictionary with tensors for keys", path)
        return [
            [self._encode(key, path, levels - 1), self._encode(item, (*path, str(key)), levels - 1)]
            for key, item in value.items()
        ]

    def _named(self, value: Tensor, path: tuple[str, ...]) -> str:
        require_storable(value, "/".join(path), self._key)
        name = self._names.get(id(value))
        if name is None:  # else it is there already: what shares a tensor goes on sharing it
            name = "/".join(path)
            while name in self.tensors:
                name += "'"
            self.tensors[name], self._names[id(value)] = value, name
        return name


def decode(data: Any, tensors: Mapping[str, Tensor], current: Any = None) -> Any:
    """Return the state that `Encoder.encode` made plain data of.

    Parameters
    ----------
    data
        What it returned.
    tensors
        By the names that it gave them; those that come back are these, not copies.
    current
        The state of the newly built object that is to have it. Functions come from there, and tensors go to the device
        on which its tensor in the same place is.

    Raises
    ------
    ValueError, LookupError, TypeError
        No `Encoder` made this data, or the object has another function in that place.
    """
    if isinstance(data, list):
        return [decode(item, tensors, _at(current, place)) for place, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    if len(data) != 1 or not next(iter(data)).startswith(_MARK):
        return {key: decode(item, tensors, _at(current, key)) for key, item in data.items()}
    ((mark, inner),) = data.items()
    tag = mark.removeprefix(_MARK)
    match tag:
        case "tensor":
            value = tensors[inner]
            return value.to(current.device) if isinstance(current, Tensor) else value
        case "made":
            if _name_of(current) != inner:
                raise ValueError(f"{_name_of(current)} where the state has {inner}")
            return current
        case "int":
            return int(inner, 16)
        case "float":
            return float(inner)
    kind, codec = CODECS[tag]
    if issubclass(kind, Mapping):
        pairs = inner[1] if tag == "defaultdict" else inner
        items = [[decode(key, tensors), item] for key, item in pairs]
        items = [[key, decode(item, tensors, _at(current, key))] for key, item in items]
        return codec.back([inner[0], items] if tag == "defaultdict" else items)
    return codec.back(decode(inner, tensors, current))


def references(data: Any) -> Iterator[str]:
    """Yield the names of the tensors that encoded data refers to."""
    if (name := tensor_name(data)) is not None:
        yield name
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from references(item)


def tensor_name(data: Any) -> str | None:
    """Return the name of the tensor that the data is, or None if it is something else."""
    mark = f"{_MARK}tensor"
    return data[mark] if isinstance(data, dict) and data.keys() == {mark} else None


def same(one: object, other: object) -> bool:
    """Whether two states are equal in types, values and the bits of their tensors, wherever these are."""
    encoders = Encoder("state"), Encoder("state")
    first, second = (
        encoder.encode(value, "state") for encoder, value in zip(encoders, (one, other), strict=True)
    )
    texts = [
        json.dumps(plain, sort_keys=True) for plain in (first, second)
    ]  # in which 1, 1.0 and true differ
    return texts[0] == texts[1] and all(
        same_bits(value, encoders[1].tensors[name]) for name, value in encoders[0].tensors.items()
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits, wherever they are."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = (value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(*flat)


def is_dense(value: Tensor) -> bool:
    """Whether a tensor has its values one by one in memory, so that `same_bits` can tell."""
    return value.layout is torch.strided and not (value.is_quantized or value.is_nested or value.is_meta)


def overlaps_itself(value: Tensor) -> bool:
    """Whether elements of a tensor share memory, as those of an expanded one: torch refuses to write to it."""
    return value.layout is torch.strided and any(
        size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def require_storable(value: Tensor, name: str, key: str) -> None:
    """Refuse a tensor that the safetensors format can't hold as it is.

    Raises
    ------
    InputError
        It is sparse or quantised, of a type of numbers without a place there, or of a class of its own.
    """
    plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized
    if not plain or value.is_meta or value.dtype not in _STORABLE:
        what = type(value).__name__ if type(value) not in (Tensor, nn.Parameter) else "tensor"
        raise InputError(
            key,
            f"a state in which {name} is a {what} of type {value.dtype} and layout {value.layout}"
            + (" without values" if value.is_meta else ""),
            "dense tensors of the usual types of numbers",
        )


_STORABLE = {
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
        *("float8_e5m2fnuz", "complex64"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
    )
}


def _require_text(value: str, path: tuple[str, ...]) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnkeptError("text that UTF-8 can't hold", path) from None


def _at(current: Any, place: Any) -> Any:
    """Return what a newly built object has in a place, or None."""
    try:
        return current[place] if isinstance(current, Mapping | list | tuple | deque) else None
    except (LookupError, TypeError):
        return None


def _name_of(value: Any) -> str:
    named = isinstance(value, _MADE_ANEW)
    return f"{value.__module__}.{value.__qualname__}" if named else f"a {type(value).__name__}"


def first_difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return where two pieces of plain data first differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = {str(place): pair for place, pair in enumerate(zip(one, other, strict=True))}
    else:
        return None if type(one) is type(other) and one == other else path
    found = (first_difference(*pair, f"{path}/{key}".removeprefix("/")) for key, pair in pairs.items())
    return next((place for place in found if place is not None), None)
