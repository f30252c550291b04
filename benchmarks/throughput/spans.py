"""What the timelines of a run's blocks say about a part of it in its steady state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lowdimfa.services.monitoring.timeline import Span

COMPUTING = ("forward", "update", "step", "probe")


def read_spans(path: Path, offset: int = 0) -> tuple[list[Span], int]:
    """Return the spans of a timeline from a position in its file on, and the position after them."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    return [Span(**json.loads(line)) for line in content.splitlines()], offset + len(content)


def applied(timelines: Iterable[Sequence[Span]], step: int) -> float:
    """Return when the last block had applied a step, in Unix seconds.

    Raises
    ------
    ValueError
        A timeline doesn't have the step.
    """
    ends = [[span.end for span in spans if span.kind == "step" and span.step == step] for spans in timelines]
    if not all(ends):
        raise ValueError(f"a block's timeline has no step {step}")
    return max(max(found) for found in ends)


def overlap(spans: Iterable[Span], kinds: Sequence[str], start: float, end: float) -> float:
    """Return the seconds that spans of some kinds take of an interval."""
    return sum(max(0.0, min(span.end, end) - max(span.start, start)) for span in spans if span.kind in kinds)


def shares(spans: Sequence[Span], start: float, end: float) -> dict[str, float]:
    """Return what a block did in an interval, as fractions of it.

    Returns
    -------
    dict
        ``busy`` is all but waiting; ``computing`` is forwards, updates and optimiser steps alone.
    """
    seconds = end - start
    return {
        "busy": 1 - overlap(spans, ("wait",), start, end) / seconds,
        "computing": overlap(spans, COMPUTING, start, end) / seconds,
    }


def handling_seconds(spans: Sequence[Span]) -> float:
    """Return the seconds from the first span to the last in which a block neither computed nor waited.

    That is the compute thread's own part of transport and scheduling: sending, publishing, taking messages, deciding.
    """
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    return end - start - overlap(spans, (*COMPUTING, "wait"), start, end)


def cpu_seconds(pid: int) -> dict[int, float]:
    """Return the processor time of each thread of a process so far, exact to the nanosecond (Linux)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = 1e-9 * int((task / "schedstat").read_text().split()[0])
        except OSError:  # the thread has ended
            continue
    return found


def used(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[float, float]:
    """Return the processor time between two looks: of all threads, and of all but the one that used most."""
    spent = [seconds - before.get(thread, 0.0) for thread, seconds in after.items()]
    return sum(spent), sum(spent) - max(spent)
