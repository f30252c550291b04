"""Specifications, which reach the job service from anybody with a token."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.spec.dialect import read_yaml, write_yaml
from lowdimfa.services.spec.load import parse_specification, parse_text, to_yaml, violations
from tests.fuzz.guard import LONGEST_MESSAGE, Finding
from tests.fuzz.mutate import change_tree

SMALL = "model: {factory: 'a:b', blocks: 2}\ndata: {factory: 'a:c'}\ntrain: {steps: 1}\n"
EXAMPLES = Path(__file__).parents[2] / "examples"

TOKENS = (
    *(
        f"{word}: ".encode()
        for word in ("model", "data", "train", "feedback", "run", "drill", "per_block", "args")
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"? ",
        b"!!int ",
        b"!!float ",
        b"!!timestamp ",
        b"!!binary ",
        b"!!set ",
        b"!!omap ",
    ),
    *(
        b"%YAML 1.1\n--- ",
        b"%TAG ! !\n--- ",
        b"--- ",
        b"...\n",
        b"|\n ",
        b">-\n ",
        b'"\\ud800"',
        b'"\\U00110000"',
    ),
    *(b"0x", b"1:59", b"1e999", b".nan", b"2001-01-01", b"[", b"]", b"{", b"}", b"- ", b"\n  "),
)

_ANCHORED = "x: &x0 [1, 1]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 8))
_SEPARATOR = "\x00"


def decode(data: bytes) -> None:
    """Load a specification, with overrides behind it after zero bytes, and write it out again."""
    try:
        text, *overrides = data.decode().split(_SEPARATOR)
    except UnicodeDecodeError:
        return  # the file's reader and protobuf refuse this
    wrong = violations(text)
    if sum(len(f"{key}{words}".encode()) for key, words in wrong) > LONGEST_MESSAGE:
        raise Finding(f"{len(wrong)} violations for {len(data)} bytes")
    try:
        loaded = parse_text(text, "fuzzed")
    except LowdimfaError:
        if not wrong:
            raise Finding("refused without a violation") from None
    else:
        if wrong:
            raise Finding("accepted with a violation")
        written = to_yaml(loaded)
        json.dumps(loaded.model_dump())
        written.encode()
        if parse_specification(read_yaml(written, "written"), "written") != loaded:
            raise Finding("it doesn't read back as it was written")
    if overrides:
        parse_text(text, "fuzzed", overrides)


def seeds() -> Iterator[bytes]:
    """Yield the examples, the smallest specification with and without overrides, and what is peculiar to YAML."""
    for path in sorted(EXAMPLES.rglob("*.yaml")):
        yield write_yaml(read_yaml(path.read_text("utf-8"), path.name)).encode()
    yield SMALL.encode()
    loaded = parse_text(SMALL, "seed")
    yield to_yaml(loaded).encode()
    yield _SEPARATOR.join(
        (SMALL, "train.steps=5", "model.args.x.y=[1, 2]", "train.per_block.0.grad_clip=1.0")
    ).encode()
    yield f"{SMALL}{_ANCHORED}".encode()
    yield f"base: &b {{epochs: 1}}\n{SMALL.replace('{steps: 1}', '{<<: *b, batch_size: 4}')}".encode()
    yield f"{SMALL}drill: {{faults: [{{kind: hang, block: 1, step: 2, seconds: 1.5}}]}}\n".encode()
    yield f"{SMALL}feedback: {{form: local}}\nplacement: {{gpus_per_block: 1.5}}\n".encode()


def mutate(data: bytes, draw: random.Random) -> bytes | None:
    """Change one place of the tree, or write a whole part of it as an anchor that is used again."""
    head, *overrides = data.split(_SEPARATOR.encode())
    try:
        tree = yaml.load(head, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # both are safe; one is fast
        text = yaml.dump(change_tree(tree, draw), None, getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        OverflowError,
        TypeError,
        LookupError,
        AttributeError,
    ):
        return None
    if draw.random() < 0.1:
        text = f"{_ANCHORED}{text}".replace("1", f"*x{draw.randrange(8)}", draw.randrange(3))
    return b"\x00".join((text.encode(errors="replace"), *overrides))
