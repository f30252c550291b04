"""What the coordinator needs of a cluster; `lowdimfa.services.coordinator.ray_runner` is the one it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

from lowdimfa.services.coordinator.jobs import Event
from lowdimfa.services.trainer.request import RunRequest

AgentCall = Literal["capacity", "start", "look", "stop", "release"]
"""What the agent of a `RayRunner` can be called for."""


class ClusterError(Exception):
    """The cluster can't be reached now; the message says why. Jobs that run there may well go on."""


@dataclass(frozen=True)
class Capacity:
    """Processor cores and GPUs of a cluster, in all and free."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class Condition(StrEnum):
    """What has become of a job's trainer."""

    alive = "alive"
    ended = "ended"
    """It has returned; the run's log, if it came to one, is complete."""
    silent = "silent"
    """It did not answer in time; it may be alive."""
    lost = "lost"
    """Its process is gone, or was never made."""


class Look(NamedTuple):
    """What a look at a trainer found; the outcome is the ``finished`` or ``failed`` event of one that has ended."""

    condition: Condition
    outcome: Event | None = None


class JobRunner(Protocol):
    """Runs jobs in processes that outlive the coordinator's. One thread calls.

    A trainer's name is new with every attempt of its job.

    Every method raises `ClusterError` when the cluster can't be reached within the liveness.
    """

    def capacity(self) -> Capacity:
        """Return what the cluster has."""

    def start(self, trainer: str, request: RunRequest) -> None:
        """Start a job's trainer and return at once. Starting a job twice has the effect of starting it once."""

    def look(self, trainers: Collection[str]) -> Mapping[str, Look]:
        """Say what has become of each job's trainer."""

    def stop(self, trainer: str, now: bool) -> None:
        """Ask a trainer to write a checkpoint and end, or end it and its blocks at once."""

    def release(self, trainer: str) -> None:
        """Free what an ended job still holds; harmless for one that holds nothing."""

    def close(self) -> None:
        """Leave the cluster as it is, and go."""
