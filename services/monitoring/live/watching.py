"""Following the jobs that somebody looks at."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from lowdimfa.services.monitoring.live.block_times import BlockTimes
from lowdimfa.services.monitoring.live.course import Course
from lowdimfa.services.monitoring.live.source import Fields, Look, Refusal, Source, Visitor
from lowdimfa.services.monitoring.live.texts import block_row, done, shown

MOST_JOBS = 32
"""Followed at a time; of others everything is read again."""

LOOKS = 5
"""At a job's events in one request: a long past comes in several."""

MEASURED = ("loss", "test_accuracy")
"""Fields of a job that its events have, too."""

PAUSE, LONG_PAUSE = 1.0, 5.0
"""Seconds until the page asks again: of a job that goes on, and of one that is over."""


class _Followed:
    """What is kept of one job, between requests of all who look at it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.course = Course()
        self.times: BlockTimes | None = None


class Watching:
    """Has what the pages of jobs show."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._followed: OrderedDict[str, _Followed] = OrderedDict()

    def news(self, visitor: Visitor, job_id: str, after: int | None) -> Fields:
        """Return what a page shows of a job; curves and what happened only if it is new since a position.

        Raises
        ------
        Refusal
        """
        followed = self._of(job_id)
        with followed.lock:
            course = followed.course
            try:
                look = self._follow(course, visitor, job_id)
            except Refusal:
                self._forget(job_id, course)
                raise
            job = _known(course, look)
            content: Fields = {
                "position": course.position,
                "more": look.more,
                "pause": 0.0 if look.more else LONG_PAUSE if look.over else PAUSE,
                "over": look.over,
                "actions": list(look.actions),
                "done": done(job),
                "texts": shown(job),
            }
            if after != course.position:
                content |= _past(course)
            if look.over:
                followed.times = None
            elif followed.times is None:
                followed.times = BlockTimes(look.targets)
            times = followed.times
        shares = [] if times is None else times.shares()
        return content | {"block_times": [block_row(block) for block in shares]}

    def _of(self, job_id: str) -> _Followed:
        """Return what is kept of a job; what nobody has asked for longest is forgotten."""
        with self._lock:
            followed = self._followed.setdefault(job_id, _Followed())
            self._followed.move_to_end(job_id)
            while len(self._followed) > MOST_JOBS:
                self._followed.popitem(last=False)
        return followed

    def _forget(self, job_id: str, course: Course) -> None:
        """Keep nothing of a job that may not even be there."""
        with self._lock:
            if not course.position:
                self._followed.pop(job_id, None)

    def _follow(self, course: Course, visitor: Visitor, job_id: str) -> Look:
        """Take in what is new, as far as it goes in one request."""
        for _ in range(LOOKS):
            look = self._source.look(visitor, job_id, course.position)
            course.take(look.events, look.position)
            if not look.more:
                break
        return look


def _known(course: Course, look: Look) -> Fields:
    """Return what is known of a job: what its source has none of now, it has none of, whatever its events said before.

    Only what was measured is as the events say: they give up what a run that went back has measured.
    """
    return course.told | {name: value for name, value in look.job.items() if name not in MEASURED}


def _past(course: Course) -> dict[str, Any]:
    return {
        "curves": {name: curve.points() for name, curve in course.curves.items() if curve.last is not None},
        "marks": course.marks(),
        "recoveries": course.recoveries(),
        "notes": course.notes(),
    }
