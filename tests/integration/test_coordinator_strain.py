"""What jobs write, and what others do meanwhile, keeps nobody from the service."""

from __future__ import annotations

import json
import sqlite3
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from coordinator_thread import SPECIFICATION, MemoryCluster, Running, coordinator
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from rpc_helpers import HANGS, eventually

from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.coordinator.copies import Copies
from lowdimfa.services.coordinator.jobs import Job, JobState
from lowdimfa.services.coordinator.runner import Condition, Look
from lowdimfa.services.coordinator.service import LOG_THREADS
from lowdimfa.services.coordinator.sqlite_store import SqliteJobStore
from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb
from lowdimfa.services.rpc.v1 import coordinator_pb2_grpc


def client(running: Running, **options: Any) -> CoordinatorClient:
    return CoordinatorClient(Connection(running.address, liveness=5.0, **options))


def running_job(service: Running, calls: CoordinatorClient, folder: Path) -> str:
    job_id = str(calls.submit("a", SPECIFICATION, {})[0]["id"])
    eventually(lambda: f"job-{job_id}-1" in service.cluster.trainers)
    log(folder, job_id, '{"event": "started", "step": 0, "steps": 10}')
    eventually(lambda: calls.get(job_id)["state"] == "running")
    return job_id


def log(folder: Path, job_id: str, line: str) -> None:
    with (folder / "runs" / job_id / "events.jsonl").open("a") as file:
        file.write(line + "\n")


def failed_by_code(service: Running) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{service.http}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    (failed,) = (family for family in families if family.name == "lowdimfa_coordinator_failed_jobs")
    return {sample.labels["code"]: sample.value for sample in failed.samples}


@pytest.mark.parametrize(
    ("number", "stored"), [("1e999", "Infinity"), ("-1e999", "-Infinity"), ("NaN", "NaN")]
)
def test_no_job_chooses_what_the_metrics_say_or_takes_them_away(
    tmp_path: Path, number: str, stored: str
) -> None:
    with coordinator(tmp_path, MemoryCluster(cpus=2)) as service, client(service) as calls:
        codes = failed_by_code(service)
        job_id = running_job(service, calls, tmp_path)
        log(tmp_path, job_id, f'{{"event": "failed", "code": "mine", "message": "no", "v": [{number}]}}')
        service.cluster.trainers[f"job-{job_id}-1"] = Look(Condition.ended)
        eventually(lambda: calls.get(job_id)["state"] == "failed")
        assert failed_by_code(service) == codes | {"internal": 1}
        last = [event for _, event in service.store.events(job_id, 0, 100) if event["event"] == "failed"]
        assert [event["v"] for event in last] == [[None]]
        assert json.loads(json.dumps(service.store.get(job_id).error, allow_nan=False))["v"] == [None]
        with sqlite3.connect(tmp_path / "state" / "jobs.sqlite3") as file:  # as an earlier release stored it
            file.execute("UPDATE jobs SET error = ?", (f'{{"code": "resources", "v": {stored}}}',))
        assert failed_by_code(service) == codes | {"internal": 1}
        service.store.update(job_id, error={"code": "resources"})
        assert failed_by_code(service) == codes | {"resources": 1}


def test_who_follows_a_log_while_the_store_is_busy_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, get = threading.Event(), SqliteJobStore.get

    def noted(self: SqliteJobStore, job_id: str) -> Job:
        asked.set()
        return get(self, job_id)

    with coordinator(tmp_path, MemoryCluster(cpus=2)) as service, client(service) as calls:
        job_id = running_job(service, calls, tmp_path)
        folder = tmp_path / "runs" / job_id / "logs"
        folder.mkdir()
        (folder / "trainer.log").write_text("one\n")
        lines = calls.logs(job_id, follow=True)
        assert next(lines) == ("trainer", "one")
        monkeypatch.setattr(SqliteJobStore, "get", noted)
        with service.store._mutex, grpc.insecure_channel(service.address) as channel:
            asked.clear()
            assert asked.wait(HANGS)
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        calls.stop(job_id, now=True)
        assert list(lines) == []


def test_logs_that_are_long_in_coming_hold_up_no_other_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, over, refresh = [], threading.Event(), Copies.refresh

    def held(self: Copies, job: Job, *, logs: bool = False, now: bool = False) -> None:
        if logs:
            entered.append(job.id)
            assert over.wait(HANGS)
        refresh(self, job, logs=logs, now=now)

    monkeypatch.setattr(Copies, "refresh", held)
    with coordinator(tmp_path, MemoryCluster(cpus=2)) as service, client(service) as calls:
        job_id = running_job(service, calls, tmp_path)
        with grpc.insecure_channel(service.address) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            try:
                request = pb.GetLogsRequest(id=job_id, follow=True)
                streams = [stub.GetLogs(request) for _ in range(4 * LOG_THREADS)]
                assert all(stream.initial_metadata() is not None for stream in streams)
                eventually(lambda: len(entered) >= LOG_THREADS)
                for _ in range(3):
                    assert stub.GetJob(pb.GetJobRequest(id=job_id), timeout=10).job.id == job_id
            finally:
                over.set()


@pytest.mark.parametrize(
    ("seen", "meanwhile", "comes_to"),
    [
        (JobState.queued, [JobState.starting], {JobState.stopping}),
        # A round that is under way may start it once more.
        (JobState.starting, [JobState.queued], {JobState.stopped, JobState.stopping}),
        (JobState.starting, [JobState.queued, JobState.starting], {JobState.stopping}),
    ],
)
def test_a_stop_means_the_state_that_the_job_is_in_by_then(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: JobState,
    meanwhile: list[JobState],
    comes_to: set[JobState],
) -> None:
    transition, raced = SqliteJobStore.transition, []

    def late(self: SqliteJobStore, job_id: str, to: JobState, *rest: Any, **options: Any) -> Job:
        if to in (JobState.stopping, JobState.stopped) and not raced:
            with self._transaction():  # one that a round can't come between
                raced.extend(transition(self, job_id, state, "").state for state in meanwhile)
        return transition(self, job_id, to, *rest, **options)

    cluster = MemoryCluster(cpus=2 if seen is JobState.starting else 0)
    with coordinator(tmp_path, cluster) as service, client(service) as calls:
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
        eventually(lambda: calls.get(job_id)["state"] == seen)
        cluster.cpus = 0
        monkeypatch.setattr(SqliteJobStore, "transition", late)
        assert calls.stop(job_id, now=True)["state"] in comes_to
        assert raced == meanwhile
        eventually(lambda: calls.get(job_id)["state"] == "stopped")
