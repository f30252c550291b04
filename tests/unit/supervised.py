"""A supervisor with a cluster in memory and trainers that write their logs when they are told to."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lowdimfa.errors import NotFiniteError, StoppedError
from lowdimfa.services.coordinator.attempt import RunRequests
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import Job, JobState, Submission
from lowdimfa.services.coordinator.runner import Capacity, ClusterError, Condition, Look
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.coordinator.supervisor import Supervisor
from lowdimfa.services.trainer.request import RunRequest

SPECIFICATION = """
model: {factory: 'lowdimfa.models:mlp', args: {in_features: 64, width: 8, depth: 2, classes: 10}, blocks: 2}
data: {factory: 'lowdimfa.data:digits'}
train: {steps: 10}
run: {on_failure: ON_FAILURE, max_recoveries: 3, liveness_seconds: LIVENESS}
"""


class Cluster:
    """A cluster whose trainers do what a test says."""

    def __init__(self, cpus: float = 4) -> None:
        self.cpus, self.used = cpus, 0.0
        self.away = ""
        self.trainers: dict[str, Look] = {}
        self.requests: dict[str, RunRequest] = {}
        self.calls: list[tuple[str, ...]] = []

    def _reach(self) -> None:
        if self.away:
            raise ClusterError(self.away)

    def capacity(self) -> Capacity:
        self._reach()
        return Capacity(self.cpus, 0, self.cpus - self.used, 0)

    def start(self, trainer: str, request: RunRequest) -> None:
        self._reach()
        self.calls.append(("start", trainer))
        self.trainers.setdefault(trainer, Look(Condition.alive))
        self.requests[trainer] = request

    def look(self, trainers: Collection[str]) -> Mapping[str, Look]:
        self._reach()
        return {name: self.trainers.get(name, Look(Condition.lost)) for name in trainers}

    def stop(self, trainer: str, now: bool) -> None:
        self._reach()
        self.calls.append(("stop now" if now else "stop", trainer))
        if now:
            self.trainers[trainer] = Look(Condition.lost)

    def release(self, trainer: str) -> None:
        self.calls.append(("release", trainer))
        self.trainers.pop(trainer, None)

    def close(self) -> None:
        pass


class World:
    """A supervisor, its store and its cluster."""

    def __init__(self, folder: Path, cpus: float = 4, storage: str = "") -> None:
        self.folder, self.storage = folder, storage or folder / "runs"
        self.cluster = Cluster(cpus)
        self.store = SqliteJobStore(folder / "jobs.sqlite3", self.storage)
        self.changed: list[str] = []
        self.restart()

    def restart(self) -> None:
        requests = RunRequests(self.storage, "node")
        copies = Copies(self.folder / "copies", 10.0)
        self.supervisor = Supervisor(self.store, self.cluster, requests, copies, 10.0, self.changed.append)

    def submit(
        self,
        cpus: float = 2,
        files: dict[str, str] | None = None,
        on_failure: str = "fail",
        liveness: float = 10,
    ) -> str:
        text = SPECIFICATION.replace("ON_FAILURE", on_failure).replace("LIVENESS", str(liveness))
        return self.store.create(Submission("job", "ada", text, files or {}), cpus, 0)[0].id

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.supervisor.round()

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def state(self, job_id: str) -> JobState:
        return self.job(job_id).state

    def trainer(self, job_id: str) -> str:
        return f"job-{job_id}-{self.job(job_id).attempt}"

    def log(self, job_id: str, *events: dict[str, Any]) -> None:
        folder = Path(self.job(job_id).run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def running(self, on_failure: str = "fail") -> str:
        job_id = self.submit(on_failure=on_failure)
        self.rounds(2)
        self.log(job_id, {"event": "started", "steps": 10, "step": 0})
        self.rounds()
        assert self.state(job_id) is JobState.running
        return job_id

    def checkpoint(self, job_id: str, step: int) -> None:
        folder = Path(self.job(job_id).run_dir) / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")

    def ended(self, job_id: str, event: dict[str, Any], logged: bool = True) -> None:
        if logged:
            self.log(job_id, event)
        self.cluster.trainers[self.trainer(job_id)] = Look(Condition.ended, event)

    def kinds(self, job_id: str) -> list[str]:
        return [
            event["state"] if event["event"] == "state" else event["event"]
            for _, event in self.store.events(job_id, 0, 1000)
        ]


FAILED = {"event": "failed"} | NotFiniteError("the loss is NaN").as_event()
STOPPED = {"event": "failed"} | StoppedError("stopped", step=7).as_event()
