"""Whether what a process takes grows from recovery to recovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lowdimfa.services.lab.drill.watch import Sample, Watched

LIVED_THROUGH = 3
"""Recoveries after which it shows whether each leaves something behind."""

FEWEST_SAMPLES = 4
"""In each of the two windows."""

THREADS = 5
DESCRIPTORS = 10
"""More than this is a leak, not a pool of threads or of connections that found its size late."""

MEMORY_SHARE = 0.10
MEMORY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Growth:
    """Medians of a process's early and late samples.

    Attributes
    ----------
    role, pid
        Which process.
    recoveries
        That it lived through.
    threads, descriptors, memory
        Pairs of early and late; memory in bytes.
    """

    role: str
    pid: int
    recoveries: int
    threads: tuple[float, float]
    descriptors: tuple[float, float]
    memory: tuple[float, float]

    @property
    def leaks(self) -> list[str]:
        """What grew too much, in words."""
        found: list[str] = []
        for name, (early, late), allowed in (
            ("threads", self.threads, THREADS),
            ("descriptors", self.descriptors, DESCRIPTORS),
        ):
            if late - early > allowed:
                found.append(f"{name} of {self.role} (process {self.pid}) grew from {early:g} to {late:g}")
        early, late = self.memory
        if late - early > MEMORY_SHARE * early + MEMORY_BYTES:
            words = f"from {early / 2**20:.0f} to {late / 2**20:.0f} MiB"
            found.append(f"memory of {self.role} (process {self.pid}) grew {words}")
        return [f"{leak} over {self.recoveries} recoveries" for leak in found]


def growth(watched: Watched, outages: Sequence[tuple[float, float]]) -> Growth | None:
    """Compare a process's first quarter with its last, or return None if it lived too shortly for that.

    Parameters
    ----------
    watched
        The process.
    outages
        When each recovery began and ended, in Unix seconds. What is taken meanwhile, or before the first that the
        process lived through, which brings parts of the program into use, does not count.
    """
    if not watched.samples:
        return None
    first, last = watched.samples[0].time, watched.samples[-1].time
    through = [(begin, end) for begin, end in outages if begin > first and end < last]
    if len(through) < LIVED_THROUGH:
        return None
    start = through[0][1]
    calm = [
        sample
        for sample in watched.samples
        if sample.time > start and not any(begin <= sample.time <= end for begin, end in outages)
    ]
    quarter = len(calm) // 4
    if quarter < FEWEST_SAMPLES:
        return None
    windows = calm[:quarter], calm[-quarter:]
    return Growth(
        role=watched.role,
        pid=watched.process.pid,
        recoveries=len(through),
        threads=_medians(windows, "threads"),
        descriptors=_medians(windows, "descriptors"),
        memory=_medians(windows, "memory"),
    )


def _medians(windows: tuple[Sequence[Sample], Sequence[Sample]], name: str) -> tuple[float, float]:
    early, late = (float(median(getattr(sample, name) for sample in window)) for window in windows)
    return early, late
