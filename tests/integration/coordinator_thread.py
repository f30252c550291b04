"""A whole coordinator over real gRPC, in a thread of the test, with a cluster in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lowdimfa.errors import StoppedError
from lowdimfa.services.coordinator.runner import Capacity, Condition, Look
from lowdimfa.services.coordinator.server import Coordinator
from lowdimfa.services.coordinator.settings import ServeSettings
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.trainer.request import RunRequest

SPECIFICATION = """
model: {factory: 'lowdimfa.models:mlp', args: {in_features: 64, width: 8, depth: 2, classes: 10}, blocks: 2}
data: {factory: 'lowdimfa.data:digits'}
train: {steps: 10}
"""


class MemoryCluster:
    """A cluster whose trainers live until a test ends them; without cores it starts none."""

    def __init__(self, cpus: float = 0) -> None:
        self.cpus = cpus
        self.trainers: dict[str, Look] = {}
        self.stops: list[tuple[str, bool]] = []

    def capacity(self) -> Capacity:
        return Capacity(self.cpus, 0, self.cpus, 0)

    def start(self, trainer: str, request: RunRequest) -> None:
        self.trainers.setdefault(trainer, Look(Condition.alive))

    def look(self, trainers: Collection[str]) -> Mapping[str, Look]:
        return {name: self.trainers.get(name, Look(Condition.lost)) for name in trainers}

    def stop(self, trainer: str, now: bool) -> None:
        self.stops.append((trainer, now))
        outcome = {"event": "failed"} | StoppedError("stopped", step=3).as_event()
        self.trainers[trainer] = Look(Condition.ended, outcome)

    def release(self, trainer: str) -> None:
        self.trainers.pop(trainer, None)

    def close(self) -> None:
        pass


class Running:
    """A coordinator that answers calls."""

    def __init__(
        self, address: str, http: str, cluster: MemoryCluster, store: SqliteJobStore, page: str = ""
    ) -> None:
        self.address, self.http, self.cluster, self.store = address, http, cluster, store
        self.page = page

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextmanager
def coordinator(
    folder: Path,
    cluster: MemoryCluster | None = None,
    change: Callable[[ServeSettings], ServeSettings] = lambda s: s,
) -> Iterator[Running]:
    """Run a coordinator on the store of a folder; what it leaves there the next one finds."""
    settings = change(
        ServeSettings(port=0, http_port=0, storage=folder / "runs", state=folder / "state", liveness=5.0)
    )
    cluster = cluster or MemoryCluster()
    store = SqliteJobStore(folder / "state" / "jobs.sqlite3", folder / "runs", settings.max_queued)
    running: list[Running] = []
    up, end = threading.Event(), threading.Event()

    async def live() -> None:
        made = Coordinator(replace(settings), store, cluster)
        running.append(Running(made.address, await made.start(), cluster, store, made.page))
        up.set()
        await asyncio.to_thread(end.wait)
        await made.stop(1.0)

    thread = threading.Thread(target=asyncio.run, args=(live(),), name="coordinator")
    thread.start()
    try:
        assert up.wait(20), "the coordinator did not start"
        yield running[0]
    finally:
        end.set()
        thread.join(20)
        assert not thread.is_alive(), "the coordinator did not end"
        store.close()
