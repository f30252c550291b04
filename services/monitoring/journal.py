"""The journal of a run: one JSON object for each event, appended, read, and followed from a position."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lowdimfa.services.monitoring.line_file import (
    WAITING_BYTES,
    LineFile,
    object_in,
    objects_in,
    open_regular,
    to_json,
)

EVENTS = "events.jsonl"
"""Name of a journal's file in the run directory."""

Event = dict[str, Any]
Sink = Callable[[Event], None]

MOST_BYTES = 1 << 20
"""Read at a time by who follows, so that one long journal keeps nobody else waiting."""

_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """How far somebody has read.

    Attributes
    ----------
    byte
        Of the file, up to which it was read.
    ahead
        Events after that which are known already: they were read while they waited for room on the disk.
    """

    byte: int
    ahead: int = 0

    def past(self, event: Event) -> Position:
        """Return the position for whoever was told one more event, and does not know where it is in the file."""
        return self._replace(ahead=self.ahead + _stands_for(event))


class News(NamedTuple):
    """New events, the position after them, and whether there may be more at once."""

    events: list[Event]
    position: Position | None
    more: bool


class Journal:
    """``events.jsonl`` in the directory of a run.

    It is read at any time, by any thread and process. One thread at a time appends, after `open`; a full disk ends no
    run: the events wait for room, after a ``warning``, and a follower gets them from memory. If more than ``limit`` bytes
    wait, the oldest are given up, and another ``warning`` stands in their place.

    Parameters
    ----------
    run_dir
        Of the run; events of an earlier part of a resumed run stay.
    sink
        Gets each event that is appended, already plain data, whether or not the disk has room for it.
    lost_at
        When the loss of the trainer was noticed that this one replaces, in Unix seconds: the first ``started`` event is
        then followed by a ``recovered`` event.
    limit
        Bytes that may wait for room on the disk.
    follow
        Whether the file may be a link: not for who may read what the run's own code may not.
    """

    def __init__(
        self,
        run_dir: Path,
        sink: Sink | None = None,
        lost_at: float | None = None,
        *,
        limit: int = WAITING_BYTES,
        follow: bool = True,
    ) -> None:
        self.path = run_dir / EVENTS
        self._sink, self._lost_at = sink, lost_at
        self._follow = follow
        self._file = LineFile(self.path, limit, on_trouble=self._note_trouble, gap=_note_gap, follow=follow)
        self._begun: Position | None = None
        self._open = False
        self._given_up = b""
        self._changed = threading.Condition()

    def open(self) -> None:
        """Begin to append; `after` without a position begins here.

        Raises
        ------
        OSError
            The file can't be opened.
        """
        with self._changed:
            self._file.open()
            self._begun, self._open = self.end(), True

    @property
    def trouble(self) -> str | None:
        """Why events are waiting to be written, or None."""
        return self._file.trouble

    def emit(self, event: str, **fields: Any) -> Event:
        """Append one event and return it."""
        entry = _entry(event, **fields)
        with self._changed:
            self._file.write(_line(entry))
            self._changed.notify_all()
        self._hand_on(entry)
        if event == "started" and self._lost_at is not None:
            seconds = max(0.0, entry["time"] - self._lost_at)  # another machine's clock may have noted it
            self._lost_at = None
            step = fields["step"]
            self.emit("recovered", policy="restart", blocks=[], step=step, missed={}, seconds=seconds)
        return entry

    def close(self) -> None:
        """End appending, after a last try to write what waits; a follower still gets that."""
        with self._changed:
            self._open, self._given_up = False, self._file.close()
        if self._file.missing:
            _log.warning("%d events are missing in %s", self._file.missing, self.path)

    def read(self, *kinds: str, damaged: Callable[[int], None] = lambda byte: None) -> Iterator[Event]:
        """Yield the events of some kinds, or all; of a journal that isn't there none.

        Parameters
        ----------
        kinds
            Of the events wanted; all if empty.
        damaged
            Called with the byte of each line that is no event, such as the half line of a killed process. Among
            ``kinds`` it hears of few: other lines are not looked at, since parsing a long journal takes seconds.
        """
        marks = [f'"{kind}"'.encode() for kind in kinds]
        for byte, event in objects_in(self.path, marks, follow=self._follow):
            if event is None or not _is_event(event):
                damaged(byte)
            elif not kinds or event["event"] in kinds:
                yield event

    def end(self) -> Position:
        """Return the position after all that the file has; half a line at its end is nobody's news."""
        try:
            with os.fdopen(open_regular(self.path, follow=self._follow), "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                return Position(size, ahead=int(file.read(1) not in (b"", b"\n")))
        except FileNotFoundError:
            return Position(0)

    def after(self, position: Position | None, patience: float = 0.0, through: str = "") -> News:
        """Return the events after a position: over all calls each once, in order, however many there are.

        Nothing in the file is believed: a line that isn't an event becomes a ``warning`` with its place, so that one is
        missed by nobody; so does a file that is shorter than the position. Half a line at the end is left for the next
        call; a file that isn't there is empty.

        Parameters
        ----------
        position
            What the last call returned; None for where the appending began.
        patience
            Seconds to wait for the first event; only for one that this object appends.
        through
            Kind of event with which the news end, if there is one: what follows from it can be noted before the next.

        Raises
        ------
        OSError
            A file that another process appends to can't be read.
        """
        if not self._changed.acquire(timeout=patience):  # a disk that hangs must not look like a lost process
            return News([], position, True)
        try:
            news = self._look(position, through)
            if not patience or news.events or not self._changed.wait(patience):
                return news
            return self._look(position, through)
        finally:
            self._changed.release()

    def _look(self, position: Position | None, through: str) -> News:
        position = position or self._begun
        if position is None:
            return News([], None, False)
        try:
            size, data = self._bytes_after(position.byte)
        except OSError as error:
            if self._begun is None and not isinstance(error, FileNotFoundError):
                raise
            return News([], position, False)
        if size < position.byte:
            told = _warning(f"{self.path} became shorter; events may be missing")
            return News([told], Position(size), False)
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == MOST_BYTES:  # no event has lines like this
            told = _warning(f"{self.path}: no line break in {MOST_BYTES} bytes")
            return News([told], Position(position.byte + MOST_BYTES, position.ahead), True)
        more = position.byte + len(data) < size
        if not more:  # what waits comes next, as if it were there already
            data += self._file.waiting() if self._open else self._given_up
        return self._news(data, whole, position, more, through)

    def _bytes_after(self, start: int) -> tuple[int, bytes]:
        """Return the size of the file, and what it has after a byte."""
        with contextlib.ExitStack() as stack:
            file = self._file.open() if self._open else open_regular(self.path, follow=self._follow)
            if not self._open:
                stack.callback(os.close, file)
            return os.fstat(file).st_size, os.pread(file, MOST_BYTES, start)

    def _news(self, data: bytes, whole: int, position: Position, more: bool, through: str) -> News:
        """Sort out the lines after a position, of which the file has those before ``whole``."""
        events: list[Event] = []
        byte, ahead, beyond, at = position.byte, position.ahead, 0, 0
        for line in data.split(b"\n")[:-1]:
            start, lines, event = position.byte + at, 1, None
            at += len(line) + 1
            if not ahead or _MISSING in line:
                event = event_in(line) or _warning(f"{self.path}: no event at byte {start}")
                lines = _stands_for(event)
                if ahead < lines:
                    events.append(event if not ahead else event | _gap(lines - ahead))
            ahead = max(0, ahead - lines)
            if at <= whole:
                byte = position.byte + at
            else:
                beyond += lines
            if event is not None and event["event"] == through:
                more = more or at < len(data)
                break
        return News(events, Position(byte, beyond + ahead), more)

    def _note_trouble(self, reason: str) -> str:
        entry = _warning(f"{reason}; events wait in memory until that is possible again")
        self._hand_on(entry)
        return _line(entry)

    def _hand_on(self, entry: Event) -> None:
        if self._sink is not None:
            self._sink(entry)


_MISSING = b'"missing"'


def _note_gap(events: int) -> str:
    return _line(_entry("warning", **_gap(events)))


def _gap(events: int) -> Event:
    return {"message": f"{events} events are missing here: the log could not be written", "missing": events}


def _stands_for(event: Event) -> int:
    """Return how many events that were appended an event stands for."""
    missing = event.get("missing") if event["event"] == "warning" else None
    return missing if isinstance(missing, int) and missing > 0 else 1


def event_in(line: bytes) -> Event | None:
    """Return the event that a line holds; None if it holds none."""
    event = object_in(line)
    return event if event is not None and _is_event(event) else None


def _is_event(found: Event) -> bool:
    """Whether an object is an event of a run; ``state`` is the job service's own."""
    return isinstance(found.get("event"), str) and found["event"] != "state"


def _entry(event: str, **fields: Any) -> Event:
    return {"event": event, "time": time.time(), **fields}


def _warning(message: str) -> Event:
    return _entry("warning", message=message)


def _line(entry: Event) -> str:
    return to_json(entry) + "\n"
