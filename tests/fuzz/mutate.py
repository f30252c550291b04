"""Changes to valid inputs that keep their outer layer valid: trees of plain values, messages of protobuf, lists."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, MutableSequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Mutation = Callable[[bytes, random.Random], bytes | None]
T = TypeVar("T")

INTEGERS = [0, 1, 2, 3, 7, 8, 9, 255, 256, 4096, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
INTEGERS += [2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [
    "",
    "a",
    "0",
    "-1",
    "é",
    "\x00",
    "\n",
    "\x85",
    "\ud800",
    "../x",
    "/etc/passwd",
    "a" * 3000,
    "x.y:z",
    "1e3",
]
NUMBERS = [0.0, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan]

MOST_ENTRIES = 200


def mutate_bytes(data: bytes, draw: random.Random) -> bytes | None:
    """Leave it to the fuzzer's own changes of bytes."""
    return None


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat or insert a few bytes."""
    at = draw.randrange(len(data) + 1)
    to = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 64)))
    piece = data[at:to]
    return (
        data[:at]
        + draw.choice((b"", draw.randbytes(4), piece * 2, bytes(len(piece)), b"\xff" * 4))
        + data[to:]
    )


def change_list(items: MutableSequence[T], draw: random.Random) -> None:
    """Remove, repeat or swap entries."""
    if not items:
        return
    at, other = draw.randrange(len(items)), draw.randrange(len(items))
    how = draw.randrange(5)
    if how == 0:
        del items[at]
    elif how <= 2:
        items.insert(other, copy.deepcopy(items[at]))
    elif how == 3:
        items[at], items[other] = items[other], items[at]
    else:
        items[:] = [copy.deepcopy(item) for item in (list(items) * draw.choice((2, 3, 20)))[:MOST_ENTRIES]]


def change_tree(tree: Any, draw: random.Random) -> Any:
    """Return a tree of plain values with one place changed."""
    tree = copy.deepcopy(tree)
    containers = list(_containers(tree))
    if not containers:
        return _leaf(tree, draw)
    inside = draw.choice(containers)
    key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    how = draw.randrange(6)
    if how == 0:
        del inside[key]
    elif how == 1:
        inside[key] = copy.deepcopy(draw.choice(containers))
    elif how == 2 and isinstance(inside, dict):
        inside[draw.choice([*WORDS, *map(str, inside)])] = inside[key]
    elif how == 2:
        change_list(inside, draw)
    elif how == 3:
        inside[key] = [inside[key]] if draw.random() < 0.5 else {draw.choice(WORDS): inside[key]}
    else:
        inside[key] = _leaf(inside[key], draw)
    return tree


def _containers(tree: Any) -> Iterator[Any]:
    """Yield every mapping and list that has something in it."""
    if isinstance(tree, dict | list) and tree:
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(inner)


def _leaf(value: Any, draw: random.Random) -> Any:
    """Return another value, most often of the same type."""
    if isinstance(value, str) and draw.random() < 0.5:
        at = draw.randrange(len(value) + 1)
        return value[:at] + draw.choice(WORDS) + value[at + draw.randrange(2) :]
    if isinstance(value, int) and draw.random() < 0.7:
        return draw.choice((value + 1, value - 1, -value, 2 * value, draw.choice(INTEGERS)))
    return draw.choice((None, True, [], {}, draw.choice(WORDS), draw.choice(INTEGERS), draw.choice(NUMBERS)))


def is_repeated(field: Any) -> bool:
    """Return whether a field has many values; protobuf 5 has a label in place of the property."""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def change_message(message: Message, draw: random.Random) -> None:
    """Change one field of a message of protobuf, or of one inside it."""
    field = draw.choice(message.DESCRIPTOR.fields)
    if is_repeated(field):
        _change_repeated(getattr(message, field.name), field, draw)
    elif field.message_type is not None:
        if draw.random() < 0.1:
            message.ClearField(field.name)
        else:
            change_message(getattr(message, field.name), draw)
    elif draw.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), draw))


def _change_repeated(entries: Any, field: FieldDescriptor, draw: random.Random) -> None:
    how = draw.randrange(4)
    if how == 0 and entries:
        del entries[draw.randrange(len(entries))]
    elif how == 1 and entries:
        kept = list(entries)
        change_list(kept, draw)
        del entries[:]
        entries.extend(kept)
    elif field.message_type is not None:
        change_message(draw.choice(entries) if entries else entries.add(), draw)
    elif how == 2 and entries:
        at = draw.randrange(len(entries))
        entries[at] = _scalar(field, entries[at], draw)
    else:
        entries.extend([_scalar(field, 0, draw)] * draw.choice((1, 1, 2, 9, MOST_ENTRIES)))


def _scalar(field: FieldDescriptor, value: Any, draw: random.Random) -> Any:
    """Return a value that the field's type holds, near the one that it has or at an edge of the type."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return change_bytes(value or b"", draw)
    if field.type == FieldDescriptor.TYPE_STRING:
        return str(_leaf(value or "", draw)).encode(errors="replace").decode()
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return draw.choice(NUMBERS)
    signed = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_ENUM)
    bits = 32 if field.type in _OF_32_BITS else 64
    value = draw.choice(((value or 0) + 1, (value or 0) - 1, draw.choice(INTEGERS))) % 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


_OF_32_BITS = (
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_FIXED32,
    FieldDescriptor.TYPE_ENUM,
)


def join(pieces: list[bytes]) -> bytes:
    """Put several messages into one input: each after its length in four bytes, little-endian."""
    return b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)


def cut(data: bytes) -> list[bytes]:
    """Take an input apart into its messages; the last one may be shorter than its length says."""
    pieces = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        pieces.append(data[4:end])
        data = data[end:]
    return pieces
