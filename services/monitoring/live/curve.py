"""A curve that stays small however long a run is."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, TypeGuard

BUCKETS = 500
"""Most of a curve; each gives its lowest and its highest point."""


class Point(NamedTuple):
    """A value at an optimiser step."""

    step: int
    value: float


class _Bucket(NamedTuple):
    """Points in a row, of which the lowest and the highest are kept; and how many they were."""

    low: Point
    high: Point
    size: int = 1

    def with_(self, other: _Bucket) -> _Bucket:
        low = min(self.low, other.low, key=lambda point: point.value)
        high = max(self.high, other.high, key=lambda point: point.value)
        return _Bucket(low, high, self.size + other.size)

    def points(self) -> list[Point]:
        return sorted({self.low, self.high})


class Curve:
    """Values by step, thinned as they come: at most ``2 * BUCKETS`` points, with every extreme and the newest one.

    Points are gathered in buckets of equal size; when there are too many, neighbours become one.
    """

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._size = 1
        self.last: Point | None = None

    def add(self, step: Any, value: Any) -> None:
        """Take in a point; one at an earlier step than the last takes back what came after it.

        What is no finite number is left out.
        """
        if not is_number(value) or not is_number(step):
            return
        point = Point(int(step), float(value))
        self.cut(point.step - 1)
        self.last, bucket = point, _Bucket(point, point)
        if self._buckets and self._buckets[-1].size < self._size:
            self._buckets[-1] = self._buckets[-1].with_(bucket)
        elif len(self._buckets) < BUCKETS - 1:  # room for the newest point, in case its bucket hides it
            self._buckets.append(bucket)
        else:
            pairs = self._buckets[::2], self._buckets[1::2] + [None] * (len(self._buckets) % 2)
            self._buckets = [one.with_(two) if two else one for one, two in zip(*pairs, strict=True)]
            self._size *= 2
            self._buckets.append(bucket)

    def cut(self, step: int) -> None:
        """Take back what came after a step."""
        if self.last is None or self.last.step <= step:
            return
        while self._buckets and self._buckets[-1].low.step > step and self._buckets[-1].high.step > step:
            self._buckets.pop()
        if self._buckets:  # at most one has points on both sides
            last = self._buckets[-1]
            kept = min((point for point in last[:2] if point.step <= step), key=lambda point: point.step)
            low, high = (point if point.step <= step else kept for point in last[:2])
            self._buckets[-1] = _Bucket(low, high, last.size)
        self.last = max(self._buckets[-1].points()) if self._buckets else None

    def points(self) -> tuple[list[int], list[float]]:
        """Return steps, which grow, and values."""
        points = [point for bucket in self._buckets for point in bucket.points()]
        if self.last is not None and self.last != points[-1]:
            points.append(self.last)
        return [point.step for point in points], [point.value for point in points]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Say whether a value is a number that a float can hold; infinity and what is not a number aren't."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
