"""Reading what a run adds to its log of events."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from lowdimfa.services.coordinator.jobs import Event

MOST_BYTES = 1 << 20
"""Read at a time, so that one long log keeps no other job waiting."""


class Tail(NamedTuple):
    """New events, the position after them, and whether there may be more at once."""

    events: list[Event]
    position: int
    more: bool


def read_tail(log: Path, position: int, through: str = "") -> Tail:
    """Return the events that whole lines after a position hold.

    Nothing in the log is believed: a line that isn't an event becomes a ``warning`` event with its place, so that
    one is missed by nobody. A last line without its end is left for the next call; a log that isn't there is empty.

    Parameters
    ----------
    log
        The ``events.jsonl`` of a run.
    position
        Bytes of it that were read before.
    through
        Kind of event with which the tail ends, if there is one: what follows from it can be noted before the next.
    """
    try:
        size = log.stat().st_size
        if size < position:
            return Tail([_warning(f"{log} became shorter; events may be missing")], size, False)
        with log.open("rb") as file:
            file.seek(position)
            data = file.read(MOST_BYTES)
    except FileNotFoundError:
        return Tail([], position, False)
    end = data.rfind(b"\n") + 1
    if not end and len(data) == MOST_BYTES:  # no event has lines like this
        return Tail([_warning(f"{log}: no line break in {MOST_BYTES} bytes")], position + MOST_BYTES, True)
    events, at = [], position
    for line in data[:end].split(b"\n")[:-1]:
        events.append(_event(line, log, at))
        at += len(line) + 1
        if events[-1]["event"] == through:
            return Tail(events, at, at < size)
    return Tail(events, position + end, position + end < size and end > 0)


def _event(line: bytes, log: Path, position: int) -> Event:
    try:
        event = json.loads(line)
        # Half of a surrogate pair, which JSON can escape, goes neither into the store nor into a message.
        json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or event["event"] == "state":
        return _warning(f"{log}: no event at byte {position}")
    return event


def _warning(message: str) -> Event:
    return {"event": "warning", "time": time.time(), "message": message}
