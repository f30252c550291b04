"""Numbers that a process counts for Prometheus, in its own memory whatever its environment says.

The ready-made metrics of ``prometheus_client`` go into files as soon as ``PROMETHEUS_MULTIPROC_DIR`` is set, as it may be
for a program that uses this one. So the numbers are kept here, and handed over when they are asked for.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from lowdimfa.services.monitoring.metrics_table import Metric

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of a `Distribution`, in seconds."""


class Number:
    """A counter or a gauge, which any thread may change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0.0
        self._since: float | None = None
        self._read: Callable[[], float] | None = None

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with self._lock:
            self._value += amount

    def set(self, value: float) -> None:
        """Replace it."""
        with self._lock:
            self._value = float(value)

    def start(self) -> None:
        """Have it grow by 1 a second until `stop`, so that whoever reads it meanwhile sees time that isn't over."""
        with self._lock:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Let it be what it is now."""
        with self._lock:
            self._value, self._since = self._now(), None

    def set_function(self, read: Callable[[], float]) -> None:
        """Have it read whenever somebody asks for it."""
        self._read = read

    def get(self) -> float:
        """Return it."""
        if self._read is not None:
            return float(self._read())
        with self._lock:
            return self._now()

    def _now(self) -> float:
        return self._value if self._since is None else self._value + time.monotonic() - self._since


class Distribution:
    """A histogram, which any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add an observation."""
        with self._lock:
            self._counts[bisect_left(BUCKETS, value)] += 1
            self._sum += value

    def get(self) -> tuple[list[tuple[str, float]], float]:
        """Return how many observations were no larger than each bound, and the sum of all."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        return list(zip((*map(str, BUCKETS), "+Inf"), map(float, counts), strict=True)), total


class Numbers(Collector):
    """The numbers of some metrics, by labels; each appears when it is first asked for.

    Parameters
    ----------
    rows
        The metrics.
    """

    def __init__(self, rows: Iterable[Metric]) -> None:
        self._rows = {row.name: row for row in rows}
        self._lock = threading.Lock()
        self._numbers: dict[tuple[str, Sequence[str]], Number] = {}
        self._distributions: dict[tuple[str, Sequence[str]], Distribution] = {}

    def number(self, name: str, **labels: str) -> Number:
        """Return a counter or a gauge."""
        with self._lock:
            return self._numbers.setdefault(self._key(name, labels), Number())

    def distribution(self, name: str, **labels: str) -> Distribution:
        """Return a histogram."""
        with self._lock:
            return self._distributions.setdefault(self._key(name, labels), Distribution())

    def forget(self, prefixes: tuple[str, ...]) -> None:
        """Have counters and gauges whose names begin so no longer, until they are asked for again."""
        with self._lock:
            for key in [key for key in self._numbers if key[0].startswith(prefixes)]:
                del self._numbers[key]

    def _key(self, name: str, labels: dict[str, str]) -> tuple[str, Sequence[str]]:
        return name, tuple(labels[label] for label in self._rows[name].labels)

    def collect(self) -> Iterable[Family]:
        """Hand all of them over."""
        with self._lock:
            numbers, distributions = list(self._numbers.items()), list(self._distributions.items())
        for row in self._rows.values():
            if row.type == "histogram":
                histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
                for (name, labels), distribution in distributions:
                    if name == row.name:
                        histogram.add_metric(labels, *distribution.get())
                yield histogram
                continue
            kind = CounterMetricFamily if row.type == "counter" else GaugeMetricFamily
            family = kind(row.name, row.help, labels=row.labels)
            for (name, labels), number in numbers:
                if name == row.name:
                    family.add_metric(labels, number.get())
            yield family
