"""What the coordinator reports to Prometheus; `metrics_table` lists every metric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lowdimfa.services.monitoring.metrics_table import METRICS
from lowdimfa.services.monitoring.numbers import Numbers

_ROWS = {row.name: row for row in METRICS if row.process == "coordinator"}

_CALLS = "lowdimfa_coordinator_answered_calls_total"
_SECONDS = "lowdimfa_coordinator_call_duration_seconds"
_STREAMS = "lowdimfa_coordinator_open_streams"


@dataclass(frozen=True)
class Reading:
    """What is read of the coordinator when Prometheus asks.

    Attributes
    ----------
    jobs
        How many are in each state.
    failed
        How many of the failed ones have an error of each code; codes without any have a zero.
    oldest_queued
        Since when the job waits that has been in the queue longest, in Unix seconds; None if none is queued.
    cluster_up
        Whether the cluster answered when it was last asked.
    cluster_at, round_at
        Unix seconds of the cluster's last answer, and of the supervisor's last round.
    """

    jobs: Mapping[str, int]
    failed: Mapping[str, int]
    oldest_queued: float | None
    cluster_up: bool
    cluster_at: float
    round_at: float


class CoordinatorMetrics:
    """The metrics of the coordinator, in a registry of their own with those of its process.

    Attributes
    ----------
    registry
        For the exporter.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._numbers = Numbers(_ROWS[name] for name in (_CALLS, _SECONDS, _STREAMS))
        self.registry.register(self._numbers)

    def called(self, method: str, code: str, seconds: float) -> None:
        """Count a call that ended; a stream's duration says nothing and isn't kept."""
        self._numbers.number(_CALLS, method=method, code=code).inc()
        if method not in ("WatchJob", "GetLogs"):
            self._numbers.distribution(_SECONDS, method=method).observe(seconds)

    def streams(self, method: str, change: int) -> None:
        """Count a stream that opened (1) or closed (-1)."""
        self._numbers.number(_STREAMS, method=method).inc(change)

    def read_from(self, reading: Callable[[], Reading]) -> None:
        """Name the source of all that is read when Prometheus asks."""
        self.registry.register(_Readings(reading))


class _Readings(Collector):
    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._reading = reading

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not ask for a reading to know the names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Read the coordinator's state."""
        now = self._reading()
        jobs = _family("lowdimfa_coordinator_known_jobs")
        for state, count in now.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        failed = _family("lowdimfa_coordinator_failed_jobs")
        for code, count in now.failed.items():
            failed.add_metric([code], count)
        yield failed
        waited = 0.0 if now.oldest_queued is None else max(0.0, time.time() - now.oldest_queued)
        for name, value in (
            ("lowdimfa_coordinator_queue_oldest_wait_seconds", waited),
            ("lowdimfa_coordinator_cluster_up", float(now.cluster_up)),
            ("lowdimfa_coordinator_cluster_last_seen_timestamp_seconds", now.cluster_at),
            ("lowdimfa_coordinator_supervisor_last_round_timestamp_seconds", now.round_at),
        ):
            family = _family(name)
            family.add_metric([], value)
            yield family


def _family(name: str) -> GaugeMetricFamily:
    row = _ROWS[name]
    return GaugeMetricFamily(row.name, row.help, labels=row.labels)
