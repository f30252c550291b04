"""A real Ray cluster that dies under its jobs: those that should go on do so by themselves, the others say what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from specifications import specification

from lowdimfa.services.coordinator.attempt import RunRequests
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import Event, Job, JobState, Submission
from lowdimfa.services.coordinator.local_cluster import LocalCluster
from lowdimfa.services.coordinator.ray_holder import VITAL
from lowdimfa.services.coordinator.ray_runner import RayRunner
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.coordinator.supervisor import Supervisor
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

LIVENESS = 60.0
PATIENCE = 500.0
STEPS = 6000


class Service:
    """What of a coordinator deals with a cluster, in the test's own thread."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.cluster = LocalCluster(self.state, LIVENESS, cpus=4)
        self.store = SqliteJobStore(self.state / "jobs.sqlite3", folder / "runs")
        log, extra = self.state / "agent.log", {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}
        self.supervisor = Supervisor(
            self.store,
            RayRunner(self.cluster.address, LIVENESS, log, extra),
            RunRequests(folder / "runs", "loopback"),
            Copies(self.state / "copies", LIVENESS),
            LIVENESS,
            lambda job_id: None,
        )

    def submit(self, name: str, plain: dict[str, object]) -> str:
        return self.store.create(Submission(name, "", yaml.safe_dump(plain)), 2, 0)[0].id

    def events(self, job_id: str, kind: str) -> list[Event]:
        return [event for _, event in self.store.events(job_id, 0, 100_000) if event["event"] == kind]

    def until(self, done: Callable[[], bool]) -> None:
        """Go on until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, self.store.in_states(list(JobState))
            self.supervisor.round()
            time.sleep(0.1)

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def processes(self) -> list[psutil.Process]:
        """Return the cluster's processes, that which holds it first."""
        holder = psutil.Process(json.loads((self.state / "ray.json").read_text())["pid"])
        return [holder, *holder.children(recursive=True)]

    def close(self) -> None:
        self.supervisor.close()
        self.cluster.end()
        self.store.close()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the cluster's processes inherit it
    made = Service(tmp_path)
    yield made
    left = made.processes()
    made.close()
    _, alive = psutil.wait_procs(left, 20)
    for process in alive:
        process.kill()
    assert not alive


def plain(steps: int, on_failure: str, blocks: int = 2) -> dict[str, object]:
    return specification(
        "mlp",
        blocks,
        run={"checkpoint_every": 50, "on_failure": on_failure, "liveness_seconds": LIVENESS},
        train={"steps": steps},
    )


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(900)
def test_jobs_of_a_cluster_that_dies_go_on_in_the_next_one(service: Service, tmp_path: Path) -> None:
    given_up = service.submit("given-up", plain(100_000, "fail", blocks=1))
    service.until(lambda: bool(service.events(given_up, "checkpoint")))
    # Only now, and with many steps: it has an end, which must not come before that of the cluster.
    going_on = service.submit("going-on", plain(STEPS, "restart"))
    service.until(lambda: bool(service.events(going_on, "checkpoint")))
    before = service.processes()
    pids = [
        pid
        for job_id in (going_on, given_up)
        for event in service.events(job_id, "started")
        for pid in (event["pids"]["trainer"], *event["pids"]["blocks"])
    ]
    assert {process.name() for process in before} >= VITAL
    next(process for process in before if process.name() == "raylet").kill()
    killed = time.time()
    _, alive = psutil.wait_procs([before[0]], 60)
    assert not alive  # a cluster that is no longer whole ends
    # Its trainers and blocks ended with it: none writes to a run that another trainer goes on with.
    assert not [pid for pid in pids if _lives(pid)]

    service.until(lambda: bool(service.events(going_on, "recovered")))
    job = service.job(given_up)
    assert job.state is JobState.failed and job.error is not None
    assert job.error["code"] == "peer_lost" and f"lowdimfa resume {given_up}" in job.detail
    recovering, recovered = (service.events(going_on, kind)[0] for kind in ("recovering", "recovered"))
    assert (recovering["reason"], recovering["recovery"]) == ("the trainer's process was lost", 1)
    assert recovered["step"] >= 50
    took = recovered["time"] - killed
    print(f"from the end of the cluster to training again: {took:.1f} s")
    assert 0 < recovered["seconds"] <= took

    service.until(lambda: service.job(going_on).ended is not None)
    assert (service.job(going_on).state, service.job(going_on).attempt) == (JobState.finished, 2)
    undisturbed = DecoupledTrainer(plain(STEPS, "restart"), engine="local", run_dir=tmp_path / "local")
    undisturbed.fit()
    found, expected = (
        export_state(CheckpointStore(path).load(None))
        for path in (Path(service.job(going_on).run_dir), tmp_path / "local")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
