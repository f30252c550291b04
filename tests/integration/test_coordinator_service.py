from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from coordinator_thread import SPECIFICATION, MemoryCluster, Running, coordinator
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families
from rpc_helpers import eventually

from lowdimfa.errors import InputError, PeerError
from lowdimfa.services.coordinator.client import Connection, CoordinatorClient
from lowdimfa.services.coordinator.jobs import JobState
from lowdimfa.services.coordinator.server import SERVICE


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    with coordinator(tmp_path) as running:
        yield running


def client(running: Running, **options: Any) -> CoordinatorClient:
    return CoordinatorClient(Connection(running.address, liveness=5.0, **options))


def test_a_job_is_submitted_found_listed_and_stopped(service: Running) -> None:
    with client(service) as calls:
        job, created = calls.submit("mnist", SPECIFICATION, {})
        assert created and job["state"] == "queued"
        again = calls.get(job["id"])
        assert again["specification"] == SPECIFICATION and again["id"] == job["id"]
        assert [found["id"] for found in calls.jobs()] == [job["id"]]
        assert list(calls.jobs([JobState.running])) == []
        stopped = calls.stop(job["id"], now=False)
        assert (stopped["state"], stopped["detail"]) == ("stopped", "stopped while it waited for room")
        with pytest.raises(InputError, match="stopped already"):
            calls.stop(job["id"], now=False)
        assert calls.resume(job["id"])["state"] == "queued"
        with pytest.raises(InputError, match="is queued; one that failed or was stopped can be resumed"):
            calls.resume(job["id"])


def test_a_job_that_has_a_trainer_is_not_resumed(tmp_path: Path) -> None:
    """It would be taken out of the queue again, for a second trainer beside the first."""
    with coordinator(tmp_path, MemoryCluster(4)) as running, client(running) as calls:
        job = calls.submit("a", SPECIFICATION, {})[0]["id"]
        eventually(lambda: bool(running.cluster.trainers))
        for state, moved in (
            ("starting", lambda: None),
            ("running", lambda: running.store.append(job, [{"event": "started", "steps": 10}], 0)),
            ("stopping", lambda: running.store.transition(job, JobState.stopping, "")),
        ):
            moved()
            with pytest.raises(InputError, match=f"is {state}; one that failed or was stopped"):
                calls.resume(job)
            assert calls.get(job)["state"] == state
        assert list(running.cluster.trainers) == [f"job-{job}-1"]


def test_what_is_wrong_is_said_key_by_key(service: Running) -> None:
    wrong = SPECIFICATION.replace("steps: 10", "steps: ten, batchsize: 3") + "run: {keep: 0}\n"
    with client(service) as calls, pytest.raises(InputError) as caught:
        calls.submit("no good name", wrong, {"../evil.py": "", "a.py": "", "data.csv": ""})
    for words in ("name: ", "files[0].path", "files[2].path", "train.steps", "train.batchsize", "run.keep"):
        assert words in caught.value.message
    with client(service) as calls, pytest.raises(InputError, match="line 2"):
        calls.submit("a", "model: [\n  1: 2: 3", {})
    with client(service) as calls, pytest.raises(InputError, match=r"feedback\.form"):
        calls.submit("a", SPECIFICATION + "feedback: {form: backprop}\n", {})
    with client(service) as calls, pytest.raises(InputError) as caught:
        calls.submit(
            "a",
            SPECIFICATION.replace("width", "widht").replace("10}", "10, optimizer: {args: {lr: fast}}}"),
            {},
        )
    for words in (
        "specification.model.args.widht: found an argument that lowdimfa.models:mlp doesn't take",
        "specification.model.args.width: found nothing; expected an integer",
        "specification.train.optimizer.args.lr: found the string 'fast'; expected a number.",
    ):
        assert words in caught.value.message
    with client(service) as calls:
        assert list(calls.jobs()) == []
    for call in ("get", "resume"):
        with client(service) as calls, pytest.raises(InputError, match="no job 'nobody'"):
            getattr(calls, call)("nobody")


def test_a_client_may_be_less_patient_than_the_service(tmp_path: Path) -> None:
    """Its pings are the more frequent the shorter its liveness is, and none of the service's business."""
    with coordinator(tmp_path, change=lambda settings: replace(settings, liveness=60.0)) as running:
        impatient = Connection(running.address, liveness=0.6)
        with client(running) as calls, CoordinatorClient(impatient) as watcher:
            job = calls.submit("a", SPECIFICATION, {})[0]["id"]
            stop = threading.Timer(2.0, calls.stop, (job, False))  # some ten pings later
            stop.start()
            assert list(watcher.logs(job, follow=True)) == []
            stop.join()
            assert calls.get(job)["state"] == "stopped"


@pytest.mark.parametrize("method", ["watch", "logs"])
def test_a_service_that_hangs_is_given_up(method: str) -> None:
    hanging = threading.Event()

    def hang(request: bytes, context: Any) -> Iterator[bytes]:
        hanging.wait(30)
        yield from ()

    handlers = {name: grpc.unary_stream_rpc_method_handler(hang) for name in ("WatchJob", "GetLogs")}
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    began = time.monotonic()
    with CoordinatorClient(Connection(f"127.0.0.1:{port}", liveness=0.5)) as calls, pytest.raises(PeerError):
        list(getattr(calls, method)("a-job"))
    assert time.monotonic() - began < 5
    hanging.set()
    server.stop(None).wait()


def test_queued_jobs_say_what_they_wait_for(tmp_path: Path) -> None:
    with coordinator(tmp_path, MemoryCluster(cpus=2)) as service, client(service) as calls:
        first = calls.submit("first", SPECIFICATION, {})[0]["id"]
        second = calls.submit("second", SPECIFICATION, {})[0]["id"]
        third = calls.submit("third", SPECIFICATION, {})[0]["id"]
        large = calls.submit(
            "large", SPECIFICATION.replace("depth: 2", "depth: 9") + "placement: {cpus_per_block: 9}", {}
        )[0]
        eventually(lambda: calls.get(first)["state"] == "starting")
        eventually(lambda: "waits for 2 CPUs: 0 of 2 are free" in calls.get(second)["detail"])
        assert calls.get(third)["detail"] == "behind 1 job"
        eventually(lambda: "the whole cluster has 2 CPUs" in calls.get(large["id"])["detail"])


def test_pages_hold_every_job_once(service: Running) -> None:
    with client(service) as calls:
        ids = [calls.submit(f"job{index}", SPECIFICATION, {})[0]["id"] for index in range(7)]
        assert [job["id"] for job in calls.jobs(limit=3)] == ids[:-4:-1]
        assert [job["id"] for job in calls.jobs()] == ids[::-1]
        assert [job["id"] for job in calls.jobs(name_prefix="job3")] == [ids[3]]


def test_a_watch_goes_on_where_it_was_across_a_restart(tmp_path: Path) -> None:
    cluster = MemoryCluster(cpus=2)
    events: list[dict[str, Any]] = []
    with coordinator(tmp_path, cluster) as first:
        port = first.port
        with client(first) as calls:
            job_id = calls.submit("mnist", SPECIFICATION, {})[0]["id"]
        watching = CoordinatorClient(Connection(first.address, liveness=20.0))
        thread = threading.Thread(target=lambda: events.extend(watching.watch(job_id)), daemon=True)
        log = tmp_path / "runs" / job_id / "events.jsonl"
        eventually(lambda: cluster.trainers)
        log.write_text(
            '{"event": "started", "steps": 10, "step": 0}\n{"event": "progress", "step": 1, "steps": 10}\n'
        )
        thread.start()
        eventually(lambda: first.store.get(job_id).last_sequence == 5)
    with log.open("a") as file:
        file.write('{"event": "progress", "step": 2, "steps": 10}\n')
    with coordinator(tmp_path, cluster, lambda settings: replace(settings, port=port)) as second:
        with client(second) as calls:
            assert calls.stop(job_id, now=False)["state"] == "stopping"
        thread.join(20)
    watching.__exit__(None, None, None)
    assert not thread.is_alive()
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    steps = [event["step"] for event in events if event["event"] == "progress"]
    assert steps == [1, 2]
    states = [event["state"] for event in events if event["event"] == "state"]
    assert states == ["queued", "starting", "running", "stopping", "stopped"]


def test_a_watch_of_an_ended_job_ends_and_one_of_the_future_is_refused(service: Running) -> None:
    with client(service) as calls:
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
        calls.stop(job_id, now=True)
        kinds = [event["state"] for event in calls.watch(job_id) if event["event"] == "state"]
        assert kinds[0] == "queued" and kinds[-1] == "stopped"
        last = calls.get(job_id)["last_sequence"]
        assert list(calls.watch(job_id, after=last)) == []
        with pytest.raises(InputError, match=f"has {last} events"):
            next(calls.watch(job_id, after=last + 1))


def test_a_submission_that_is_made_again_with_its_key_is_one_job(service: Running) -> None:
    with client(service) as calls:
        first, created = calls.submit("a", SPECIFICATION, {}, "key")
        second, again = calls.submit("a", SPECIFICATION, {}, "key")
        assert (created, again, first["id"]) == (True, False, second["id"])
        with pytest.raises(InputError, match="another specification"):
            calls.submit("a", SPECIFICATION.replace("10}", "11}"), {}, "key")


def test_logs_come_from_their_end_and_follow_until_the_job_does(tmp_path: Path) -> None:
    cluster = MemoryCluster(cpus=2)
    with coordinator(tmp_path, cluster) as service, client(service) as calls:
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
        eventually(lambda: cluster.trainers)
        folder = tmp_path / "runs" / job_id / "logs"
        folder.mkdir()
        (folder / "trainer.log").write_bytes(b"one\ntwo\nthree\n")
        (folder / "block-0.log").write_bytes(b"bl\xffock\nno end")
        (folder / "secret.log").write_text("not a process of the job\n")
        assert list(calls.logs(job_id, tail=2)) == [
            ("trainer", "two"), ("trainer", "three"), ("block-0", "bl\ufffdock"), ("block-0", "no end"),
        ]  # fmt: skip
        assert next(calls.logs(job_id, sources=["block-0", "../../etc/passwd"])) == (
            "block-0",
            "bl\ufffdock",
        )
        seen: list[tuple[str, str]] = []
        followed = threading.Thread(target=lambda: seen.extend(calls.logs(job_id, follow=True)), daemon=True)
        followed.start()
        with (folder / "trainer.log").open("a") as file:
            file.write("four\n")
        calls.stop(job_id, now=False)
        followed.join(15)
        assert not followed.is_alive()
        assert ("trainer", "four") in seen and ("block-0", "no end") in seen


def test_health_reflection_and_pages_for_machines(tmp_path: Path) -> None:
    cluster = MemoryCluster(cpus=2)
    with coordinator(tmp_path, cluster) as service, client(service) as calls:
        channel = grpc.insecure_channel(service.address)
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "lowdimfa.v1.Coordinator"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        described = DescriptorPool(database).FindServiceByName("lowdimfa.v1.Coordinator")
        assert "SubmitJob" in described.methods_by_name
        channel.close()
        job_id = calls.submit("a", SPECIFICATION, {})[0]["id"]
        eventually(lambda: cluster.trainers)
        targets = tmp_path / "runs" / "targets"
        targets.mkdir()
        entry = {"targets": ["10.0.0.7:1234"], "labels": {"job": job_id, "role": "head", "block": "1"}}
        (targets / f"{job_id}.json").write_text(json.dumps([entry]))
        (targets / "other.json").write_text(json.dumps([entry]))
        assert json.loads(page(service, "targets")) == [entry]
        assert page(service, "healthz") == "ok\n"
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(page(service, "metrics"))
            for sample in family.samples
        }
        assert values["lowdimfa_coordinator_known_jobs", "starting"] == 1
        assert values["lowdimfa_coordinator_answered_calls_total", "OK", "SubmitJob"] == 1
        assert values["lowdimfa_coordinator_cluster_up",] == 1


def test_a_service_that_is_not_there_is_named(tmp_path: Path) -> None:
    with coordinator(tmp_path) as service:
        address = service.address
    with CoordinatorClient(Connection(address, liveness=0.5)) as calls, pytest.raises(PeerError) as caught:
        calls.get("a")
    assert address in caught.value.message and "lowdimfa serve" in caught.value.message


def page(service: Running, name: str) -> str:
    with urllib.request.urlopen(f"http://{service.http}/{name}", timeout=10) as answer:
        return answer.read().decode()
