"""Types that JSON has no word for, each as a simpler one and back."""

from __future__ import annotations

import base64
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

_EMPTY_VALUES = {kind.__name__: kind for kind in (bool, int, float, str, list, dict, set)}
"""What a defaultdict may make values with."""


class UnkeptError(Exception):
    """A value that can't be kept, and where in a state it is."""

    def __init__(self, found: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(found)
        self.found, self.path = found, path


class Codec(NamedTuple):
    """A type as a simpler one, which is encoded in its turn, and back."""

    simpler: Callable[[Any], Any]
    back: Callable[[Any], Any]


def _pairs(value: Mapping[Any, Any]) -> list[list[Any]]:
    return [[key, item] for key, item in value.items()]


def _empty_value(value: defaultdict[Any, Any]) -> str | None:
    factory = value.default_factory
    if factory is None:
        return None
    if factory not in _EMPTY_VALUES.values():
        raise UnkeptError("a defaultdict with a factory of its own")
    return str(factory.__name__)


def _array_bytes(value: Any) -> Tensor:
    if value.dtype.hasobject or value.dtype.names is not None:
        raise UnkeptError(f"a NumPy array of {value.dtype}")
    return torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.nbytes else _NO_BYTES


_NO_BYTES = torch.empty(0, dtype=torch.uint8)

CODECS: dict[str, tuple[type, Codec]] = {
    "tuple": (tuple, Codec(list, tuple)),
    "set": (set, Codec(list, set)),
    "frozenset": (frozenset, Codec(list, frozenset)),
    "dict": (dict, Codec(_pairs, dict)),
    "OrderedDict": (OrderedDict, Codec(_pairs, OrderedDict)),
    "Counter": (Counter, Codec(_pairs, lambda pairs: Counter(dict(pairs)))),
    "defaultdict": (
        defaultdict,
        Codec(
            lambda value: [_empty_value(value), _pairs(value)],
            lambda parts: defaultdict(parts[0] and _EMPTY_VALUES[parts[0]], parts[1]),
        ),
    ),
    "deque": (
        deque,
        Codec(lambda value: [value.maxlen, list(value)], lambda parts: deque(parts[1], parts[0])),
    ),
    "range": (
        range,
        Codec(lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    ),
    "bytes": (bytes, Codec(lambda value: base64.b64encode(value).decode(), base64.b64decode)),
    "complex": (
        complex,
        Codec(lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    ),
    "Size": (torch.Size, Codec(list, torch.Size)),
    "dtype": (
        torch.dtype,
        Codec(lambda value: str(value).removeprefix("torch."), lambda name: _dtype(name)),
    ),
    "device": (torch.device, Codec(str, torch.device)),
    "array": (
        numpy.ndarray,
        Codec(
            lambda value: [value.dtype.str, list(value.shape), _array_bytes(value)],
            lambda parts: (
                numpy.frombuffer(parts[2].numpy().tobytes(), plain_dtype(parts[0])).reshape(parts[1]).copy()
            ),
        ),
    ),
    "Parameter": (
        nn.Parameter,
        Codec(
            lambda value: [value.data, value.requires_grad],
            lambda parts: nn.Parameter(parts[0], parts[1]),
        ),
    ),
}
TAGS = {kind: tag for tag, (kind, _) in CODECS.items()}


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is no type of numbers")
    return found


def plain_dtype(name: str) -> Any:
    """Return NumPy's type of numbers, text or bytes of that name; objects are none of these."""
    found = numpy.dtype(name)
    if found.hasobject:
        raise ValueError(f"{name} is no type of numbers")
    return found
