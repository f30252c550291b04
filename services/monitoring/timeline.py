"""The timeline of a block: what it did, when, and what it waited for.

A block records one span per piece of work into ``timeline/block-<i>.jsonl``, or ``block-<i>-replica-<j>.jsonl`` in a
replica after the first; the report draws them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from lowdimfa.services.monitoring.line_file import LineFile

KINDS = ("forward", "update", "step", "probe", "send", "publish", "wait")
"""What a span may be."""

CAUSES = ("activation", "error", "staleness", "window", "replica", "data")
"""What a block may wait for."""

_log = logging.getLogger(__name__)


class Span(NamedTuple):
    """One piece of work of one block.

    Attributes
    ----------
    kind
        One of `KINDS`.
    step, microbatch
        The ticket that was worked on.
    start, end
        Unix seconds.
    cause
        One of `CAUSES` for a wait, else empty.
    """

    kind: str
    step: int
    microbatch: int
    start: float
    end: float
    cause: str = ""

    def as_line(self) -> str:
        """Return the span as one line of JSON, without a cause where there is none."""
        fields = self._asdict()
        if not self.cause:
            del fields["cause"]
        return json.dumps(fields, separators=(",", ":")) + "\n"


class TimelineWriter:
    """Collects spans in memory and appends them to a file of JSON lines.

    Recording is an append to a list; nothing is formatted or written before `flush`. Spans for which the disk has no
    room wait in memory, and are given up if that lasts to the end: a timeline is no reason to end a run. For one thread.

    Parameters
    ----------
    path
        The file; it and its folder are made when there is something to write.
    limit
        Spans to keep. What comes later is only counted, so a long run can't fill a disk.
    """

    def __init__(self, path: Path, limit: int = 20_000) -> None:
        self.path = path
        self._file = LineFile(path, on_trouble=self._note)
        self._room = limit
        self._beyond = 0
        self._spans: list[Span] = []

    def record(
        self, kind: str, step: int, microbatch: int, start: float, end: float, cause: str = ""
    ) -> None:
        """Keep one span (see `Span`), or count it as dropped once the limit is reached."""
        if self._room > 0:
            self._room -= 1
            self._spans.append(Span(kind, step, microbatch, start, end, cause))
        else:
            self._beyond += 1

    def flush(self) -> None:
        """Append what was recorded since the last flush, as far as there is room."""
        self._file.write("".join(span.as_line() for span in self._spans))
        self._spans.clear()

    def close(self) -> None:
        """Write what is left, if there is room."""
        self.flush()
        self._file.close()

    @property
    def dropped(self) -> int:
        """How many spans are in neither the file nor the memory."""
        return self._beyond + self._file.missing

    def _note(self, reason: str) -> str:
        _log.warning("%s; its spans wait in memory until that is possible again", reason)
        return ""
