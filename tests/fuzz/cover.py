"""Which lines of a decoder inputs reach, and which few inputs reach all that many do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tests.fuzz.guard import Finding, guarded
from tests.fuzz.targets import Target

SOURCES = Path(__file__).parents[2] / "lowdimfa"  # as frames name them: the services are a link there
CORPUS = Path(__file__).parent / "corpus"


class Step(NamedTuple):
    """From one line of a file to the next that ran in the same frame; 0 is the way in."""

    file: str
    before: int
    line: int


def corpus(name: str) -> dict[str, bytes]:
    """Return the inputs of a target that are kept, by file name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}


def steps_of(target: Target, data: bytes) -> set[Step]:
    """Return what one input reaches of a target's modules."""
    files = {str(SOURCES / module) for module in target.modules}
    steps: set[Step] = set()

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in files:
            return None
        before = 0

        def follow(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal before
            if event == "line":
                steps.add(Step(file, before, frame.f_lineno))
                before = frame.f_lineno
            return follow

        return follow

    sys.settrace(enter)
    try:
        guarded(target.decode, data)
    except Finding:
        pass
    finally:
        sys.settrace(None)
    return steps


def fewest(target: Target, inputs: Iterable[bytes], most: int) -> list[bytes]:
    """Return at most so many inputs that together reach what all do, small ones first."""
    reached: set[Step] = set()
    kept: list[tuple[int, bytes]] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        new = steps_of(target, data) - reached
        if new:
            reached |= new
            kept.append((len(new), data))
    return [data for _, data in sorted(kept, key=lambda entry: -entry[0])[:most]]


def line_coverage(target: Target, inputs: Iterable[bytes]) -> tuple[int, int]:
    """Return how many lines inside functions of a target's modules the inputs reach, and how many there are."""
    lines = {(str(SOURCES / module), line) for module in target.modules for line in _lines(SOURCES / module)}
    reached = {(step.file, step.line) for data in inputs for step in steps_of(target, data)}
    return len(lines & reached), len(lines)


def _lines(path: Path) -> Iterator[int]:
    """Yield the lines of functions, without the one that names them; classes and the module run at import."""
    pending = [compile(path.read_bytes(), str(path), "exec")]
    while pending:
        code = pending.pop()
        pending += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        if code.co_flags & 0x2:  # its names are local: a function
            yield from (line for *_, line in code.co_lines() if line and line != code.co_firstlineno)
