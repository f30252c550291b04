"""The timeline as a Chrome trace, which Perfetto and chrome://tracing open.

Each block is a process of two threads: what its compute thread did and waited for, and the messages that it sent. Arrows
lead from the sending of an activation to the forward that used it, and from the broadcast of an error to the updates.
The format is that of "Trace Event Format" (Google): an object with the list ``traceEvents``, times in microseconds.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowdimfa.services.monitoring.report.reading import CATEGORIES, Record, Spans

_WORK, _MESSAGES = 1, 2
_THREADS = {_WORK: "compute", _MESSAGES: "messages"}
_SENT = ("send", "publish")
_MARKS = ("started", "evaluated", "checkpoint", "recovering", "recovered", "failed", "finished")
"""Events of the run that are shown as lines across all blocks."""

_TICKS = 10
"""Ticks in a microsecond: what a float of Unix seconds resolves, in whole numbers, so that no sum is rounded."""


class _Arrows(NamedTuple):
    """Messages of one kind from one block to another: when each was sent, and when it was used, in ticks."""

    name: str
    sender: int
    receiver: int
    sent: NDArray[np.int64]
    used: NDArray[np.int64]


class _Line(NamedTuple):
    """One event: when, in ticks; its place among events of the same time; its JSON."""

    ticks: int
    rank: int
    text: str


def write_trace(record: Record, path: Path) -> bool:
    """Write the timeline of a run as a Chrome trace, event by event; return False where none was recorded.

    Events are sorted by time. Time 0 is the run's start. Clocks of several machines are taken as they are, but no
    message arrives before it was sent: such an arrow is left out.
    """
    if not record.spans:
        return False
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for number, text in enumerate(_events(record)):
            file.write(f",\n{text}" if number else text)
        file.write("\n]}\n")
    return True


def _events(record: Record) -> Iterator[str]:
    """Yield names, then all events in the order of time; only their times are in memory, not their texts."""
    zero = _start(record)
    yield from _names(record)
    lines = [_slices(block, spans, zero) for block, spans in record.spans.items()]
    first = 0
    for arrows in _arrows(record.spans, zero):
        lines += [_tails(arrows, first), _points(arrows, first)]
        first += len(arrows.sent)
    lines.append(_marks(record, zero))
    yield from (line.text for line in heapq.merge(*lines))


def _start(record: Record) -> float:
    """Return the Unix seconds at which the run, or the first part of it, began."""
    started: list[float] = [
        event["time"] for event in record.events if event.get("event") == "started" and "time" in event
    ]
    return min([*started[:1], *(float(spans.start.min()) for spans in record.spans.values())])


def _ticks(seconds: NDArray[np.float64] | float, zero: float) -> NDArray[np.int64]:
    return np.rint((np.asarray(seconds) - zero) * 1e6 * _TICKS).astype(np.int64)


def _microseconds(ticks: int) -> str:
    return f"{ticks / _TICKS:.1f}"


def _names(record: Record) -> Iterator[str]:
    """Yield what the processes and threads are called, and their order."""
    blocks = {entry["index"]: entry for entry in record.plan.get("blocks", [])}
    head = max([*blocks, *record.spans])

    def metadata(what: str, block: int, tid: int, **args: str | int) -> str:
        return json.dumps({"name": what, "ph": "M", "ts": 0, "pid": _pid(block), "tid": tid, "args": args})

    for block in record.spans:
        first = blocks.get(block, {}).get("name")
        title = f"block {block}" + (f" from {first}" if first else "") + (" (head)" if block == head else "")
        yield metadata("process_name", block, 0, name=title)
        yield metadata("process_sort_index", block, 0, sort_index=block)
        for tid, thread in _THREADS.items():
            yield metadata("thread_name", block, tid, name=thread)
            yield metadata("thread_sort_index", block, tid, sort_index=tid)


def _pid(block: int) -> int:
    return block + 1  # 0 is the idle process to some viewers


def _slices(block: int, spans: Spans, zero: float) -> Iterator[_Line]:
    """Yield a block's spans as complete events."""
    heads = []
    for category in CATEGORIES:
        kind = "wait" if category.startswith("wait") else "message" if category in _SENT else "work"
        tid = _MESSAGES if category in _SENT else _WORK
        heads.append(f'{{"name":"{category}","cat":"{kind}","ph":"X","pid":{_pid(block)},"tid":{tid}')
    starts = _ticks(spans.start, zero)
    durations = np.maximum(_ticks(spans.end, zero) - starts, 0)  # a clock may have been set back
    columns = (spans.category, starts, durations, spans.step, spans.microbatch)
    for i in np.argsort(starts, kind="stable"):
        code, ticks, duration, step, microbatch = (int(column[i]) for column in columns)
        yield _Line(
            ticks,
            0,
            f'{heads[code]},"ts":{_microseconds(ticks)},"dur":{_microseconds(duration)},'
            f'"args":{{"step":{step}{_rest(code, microbatch)}}}}}',
        )


def _rest(code: int, microbatch: int) -> str:
    """Return what else to say of a span: the cause of a wait; the micro-batch, which waits and steps have none of."""
    category = CATEGORIES[code]
    if category.startswith("wait"):
        return f',"cause":"{category.removeprefix("wait: ")}"'
    return "" if category == "step" else f',"micro-batch":{microbatch}'


def _arrows(spans: dict[int, Spans], zero: float) -> Iterator[_Arrows]:
    """Yield the messages whose sending and use were both recorded."""
    head = max(spans)
    for block, own in spans.items():
        if block + 1 in spans:
            yield _Arrows(
                "activation", block, block + 1, *_matched(own, "send", spans[block + 1], "forward", zero)
            )
        for use in ("update", "probe") if block != head else ():
            yield _Arrows("error", head, block, *_matched(spans[head], "publish", own, use, zero))


def _matched(
    outgoing: Spans, sending: str, incoming: Spans, use: str, zero: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair each use of a ticket with the last sending of it before: a step may have been run again."""
    sent: dict[tuple[int, int], list[int]] = defaultdict(list)
    for step, microbatch, ticks in _of_kind(outgoing, sending, zero):
        sent[step, microbatch].append(ticks)
    for times in sent.values():
        times.sort()
    pairs = []
    for step, microbatch, ticks in _of_kind(incoming, use, zero):
        times = sent.get((step, microbatch), [])
        before = bisect_right(times, ticks)
        if before:
            pairs.append((times[before - 1], ticks))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _of_kind(spans: Spans, kind: str, zero: float) -> Iterator[tuple[int, int, int]]:
    """Yield step, micro-batch and start of a block's spans of one kind."""
    chosen = spans[spans.category == CATEGORIES.index(kind)]
    starts = _ticks(chosen.start, zero)
    yield from zip(chosen.step.tolist(), chosen.microbatch.tolist(), starts.tolist(), strict=True)


def _tails(arrows: _Arrows, first: int) -> Iterator[_Line]:
    """Yield where the arrows begin: each binds to the slice of the message that starts then."""
    place = f'"pid":{_pid(arrows.sender)},"tid":{_MESSAGES}'
    yield from _ends(arrows, first, arrows.sent, 1, '"ph":"s"', place)


def _points(arrows: _Arrows, first: int) -> Iterator[_Line]:
    """Yield where the arrows end: each binds to the slice of the work that starts then."""
    place = f'"pid":{_pid(arrows.receiver)},"tid":{_WORK}'
    yield from _ends(arrows, first, arrows.used, 2, '"ph":"f","bp":"e"', place)


def _ends(
    arrows: _Arrows, first: int, times: NDArray[np.int64], rank: int, phase: str, place: str
) -> Iterator[_Line]:
    """Yield one end of the arrows in the order of its times."""
    for i in np.argsort(times, kind="stable"):
        ticks = int(times[i])
        common = f'"name":"{arrows.name}","cat":"flow","id":{first + i}'
        yield _Line(ticks, rank, f'{{{common},{phase},"ts":{_microseconds(ticks)},{place}}}')


def _marks(record: Record, zero: float) -> Iterator[_Line]:
    """Yield what happened to the run as a whole as instant events."""
    marks = [event for event in record.events if event.get("event") in _MARKS and "time" in event]
    for event in sorted(marks, key=lambda event: float(event["time"])):
        if event["time"] >= zero:
            ticks = int(_ticks(event["time"], zero))
            shown = {"name": event["event"], "cat": "run", "ph": "i", "s": "g"}
            place = {"ts": ticks / _TICKS, "pid": _pid(min(record.spans)), "tid": _WORK}
            args = {key: value for key, value in event.items() if isinstance(value, str | int | float)}
            yield _Line(ticks, 3, json.dumps(shown | place | {"args": args}))
