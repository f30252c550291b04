"""Runs that are kept in a bucket of a real server of S3: killed, resumed elsewhere, and with a store that fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import SECONDS, Going, Outcome, held, local, refused
from forks import Forks
from objects import SECRET, Store, running
from safetensors.torch import load_file
from service import service

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 32, "depth": 3, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {
        "steps": 80,
        "batch_size": 50,
        "log_every": 5,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
    },
    "run": {"evaluate_every_epochs": 0, "checkpoint_every": 10, "liveness_seconds": 20.0},
}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running() as found:
        yield found


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    return tmp_path / "spec.yaml"


def machine(store: Store, folder: Path) -> dict[str, str]:
    """Return the environment of a command on a machine that has nothing of the run."""
    folder.mkdir()
    return store.environment | {"TMPDIR": str(folder)}


def exported(forks: Forks, place: object, output: Path, **more: str) -> dict[str, Any]:
    outcome = forks.run("export", place, "--output", output, **more)
    assert outcome.code == 0, outcome
    return load_file(output)


def test_killed_and_resumed_on_another_machine_equals_a_run_in_a_folder(
    store: Store, forks: Forks, spec: Path, tmp_path: Path
) -> None:
    run, course = f"{store.address}/resumed", ("--set", "train.steps=40")
    assert forks.run(*local(spec, tmp_path / "folder"), *course).code == 0
    expected = exported(forks, tmp_path / "folder", tmp_path / "expected.safetensors")

    first = machine(store, tmp_path / "first")
    with Going(forks.start(*local(spec, run), *course, *held(spec, "checkpoint-20"), **first)) as going:
        while going.until("checkpoint")[-1]["step"] < 20:
            pass
        going.process.send_signal(signal.SIGKILL)
        outcomes = [going.end()]
    assert outcomes[0].code == -signal.SIGKILL and not outcomes[0].of("finished")
    second = machine(store, tmp_path / "second")
    outcomes += [forks.run(*local(spec, run), *course, "--resume", **second)]
    assert outcomes[-1].code == 0 and outcomes[-1].of("started")[0]["step"] >= 20
    assert outcomes[-1].events[-1]["run_dir"] == run

    third = machine(store, tmp_path / "third")
    found = exported(forks, run, tmp_path / "found.safetensors", **third)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    outcomes += [forks.run(command, run, **third) for command in ("evaluate", "report")]
    assert all(outcome.code == 0 for outcome in outcomes[1:])
    there = store.ask("GET", "/kept?list-type=2&prefix=resumed/").decode()
    for name in ("spec.yaml", "events.jsonl", "result.json", "timeline/block-0.jsonl", "report/index.html"):
        assert f"<Key>resumed/{name}</Key>" in there
    events = store.ask("GET", "/kept/resumed/events.jsonl").decode()
    assert [json.loads(line)["event"] for line in events.splitlines()].count("started") == 2
    said = [outcome.stdout + outcome.stderr for outcome in outcomes]
    for text in (*said, events, store.ask("GET", "/kept/resumed/spec.yaml").decode()):
        assert SECRET not in text


@pytest.mark.parametrize("fault", ["busy", "torn"])
def test_while_the_store_fails_the_run_goes_on_with_the_last_good_checkpoint(
    fault: str, store: Store, forks: Forks, spec: Path, tmp_path: Path
) -> None:
    run = f"{store.address}/{fault}"
    quick = ("--set", "run.liveness_seconds=1.5")
    with Going(forks.start(*local(spec, run), *quick, **machine(store, tmp_path / "machine"))) as going:
        going.until("checkpoint")
        store.way.fault = fault
        try:
            going.until("checkpoint_failed")
            there = store.ask("GET", f"/kept?list-type=2&prefix={fault}/checkpoints/").decode()
            assert there.count("manifest.json</Key>") in (1, 2)
            warned = going.until("warning")[-1]["message"]
        finally:
            store.way.fault = ""
        outcome = going.end()
    assert "no checkpoint of step" in warned and "the run goes on and tries again" in warned
    assert outcome.code == 0 and outcome.of("finished") and outcome.of("checkpoint")[-1]["step"] == 80
    there = store.ask("GET", f"/kept?list-type=2&prefix={fault}/checkpoints/").decode()
    assert there.count("manifest.json</Key>") == 2 and there.count(".safetensors</Key>") == 4


def test_a_store_that_is_busy_for_a_moment_or_slow_is_asked_again(
    store: Store, forks: Forks, spec: Path, tmp_path: Path
) -> None:
    run = f"{store.address}/patient"
    store.way.fault, store.way.struck = "busy", threading.Semaphore(0)
    short = ("--set", "train.steps=20")
    try:
        with Going(forks.start(*local(spec, run), *short, **machine(store, tmp_path / "machine"))) as going:
            assert all(store.way.struck.acquire(timeout=SECONDS) for _ in range(3))
            store.way.fault = "slow"
            outcome = going.end()
    finally:
        store.way.fault = ""
    assert outcome.code == 0 and not outcome.of("checkpoint_failed")
    assert [event["step"] for event in outcome.of("checkpoint")] == [10, 20]


def test_what_can_t_be_used_is_refused_before_training(
    store: Store, forks: Forks, spec: Path, tmp_path: Path
) -> None:
    here = machine(store, tmp_path / "machine")

    def ended(place: str, *more: object) -> Outcome:
        outcome = forks.run(*local(spec, place), *more, **here)
        assert SECRET not in outcome.stdout + outcome.stderr and not outcome.of("started")
        return outcome

    refused(
        ended("s3://missing/run"),
        "run.storage",
        "NoSuchBucket",
        "a bucket that is there",
        "AWS_ACCESS_KEY_ID",
    )
    refused(ended("s3://missing/run", "--dry-run"), "run.storage", "NoSuchBucket")
    with store.guarded():
        refused(ended(f"{store.address}/run"), "run.storage", "credentials in the environment")
    refused(ended(f"s3://me:{SECRET}@kept/run"), "--run-dir", "an address with credentials")
    refused(ended(f"{store.address}/none", "--resume"), "s3://kept/none", "no run to resume")
    refused(forks.run("evaluate", f"{store.address}/none", **here), "spec.yaml")
    refused(forks.run("serve", "--storage", store.address, **here), "--state", "the job store")
    state = ("--state", tmp_path / "state")
    refused(forks.run("serve", "--storage", "s3://missing/runs", *state, **here), "--storage", "NoSuchBucket")
    examined = forks.run("doctor", "--storage", "s3://missing/runs", "--format", "json", **here)
    (found,) = [finding for finding in examined.of("finding") if finding["check"] == "storage"]
    assert examined.code == 5 and "can't be written (NoSuchBucket" in found["found"], found
    assert b"<Key>run/" not in store.ask("GET", "/kept?list-type=2")


def test_blocks_on_ray_write_their_own_files(store: Store, forks: Forks, spec: Path, tmp_path: Path) -> None:
    run, here = f"{store.address}/ray", store.environment
    outcome = forks.run(
        "train", spec, "--format", "json", "--run-dir", run, "--set", "train.steps=20", **here
    )
    assert outcome.code == 0, outcome
    assert forks.run(*local(spec, tmp_path / "folder"), "--set", "train.steps=20").code == 0
    expected = exported(forks, tmp_path / "folder", tmp_path / "expected.safetensors")
    found = exported(forks, run, tmp_path / "found.safetensors", **here)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    there = store.ask("GET", "/kept?list-type=2&prefix=ray/").decode()
    for name in ("timeline/block-1.jsonl", "logs/block-0.log", "logs/trainer.log", "result.json"):
        assert f"<Key>ray/{name}</Key>" in there


HELD = """
import time
from pathlib import Path
from torch import nn

print("hello from my own file", flush=True)

class Held(nn.Module):
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        while self.calls > 25 and Path({gate!r}).exists():
            time.sleep(0.01)
        return inputs

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Held(), nn.Linear(16, 10))
"""


@pytest.mark.slow
def test_a_service_runs_jobs_whose_runs_are_in_a_bucket_and_loses_none(
    store: Store, forks: Forks, tmp_path: Path
) -> None:
    gate, spec, state = tmp_path / "gate", tmp_path / "spec.yaml", tmp_path / "served" / "state"
    (tmp_path / "mine.py").write_text(HELD.format(gate=str(gate)))
    spec.write_text(yaml.safe_dump(SPECIFICATION | {"model": {"factory": "mine:make_model", "blocks": 2}}))
    again = ("--set", "run.on_failure=restart")
    assert forks.run(*local(spec, tmp_path / "folder"), *again).code == 0
    expected = exported(forks, tmp_path / "folder", tmp_path / "expected.safetensors")

    (tmp_path / "served").mkdir()
    gate.touch()
    where = ("--storage", f"{store.address}/jobs", "--state", state)
    with service(tmp_path / "served", forks, *where, **store.environment) as running:
        job = str(running.json("submit", spec, *again)["job"]["id"])
        with running.watching(job) as watching:
            started = watching.until("started")
            held = watching.until("checkpoint") + watching.until(
                "checkpoint"
            )  # while it stands after step 25
            with urllib.request.urlopen(f"http://{running.http}/targets", timeout=SECONDS) as answer:
                assert [entry["labels"]["job"] for entry in json.load(answer)] == [job] * 3
            os.kill(started[-1]["pids"]["trainer"], signal.SIGKILL)
            gate.unlink()
            outcome = watching.end()
        logs = running.run("logs", job)
    assert held[-1]["step"] == 20 and outcome.code == 0, outcome
    sequence = [event["sequence"] for event in started + held + outcome.events]
    assert sequence == list(range(1, len(sequence) + 1))
    kinds = [event.get("state", event["event"]) for event in outcome.events]
    order = [
        kinds.index(kind) for kind in ("recovering", "queued", "starting", "started", "recovered", "finished")
    ]
    assert order == sorted(order) and outcome.of("started")[0]["step"] == 20
    assert "block-0 hello from my own file" in logs.stdout
    there = machine(store, tmp_path / "there")
    found = exported(forks, f"{store.address}/jobs/{job}", tmp_path / "found.safetensors", **there)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    log = (tmp_path / "served" / "serve.log").read_text()
    events = store.ask("GET", f"/kept/jobs/{job}/events.jsonl").decode()
    assert SECRET not in log + events + logs.stdout + outcome.stdout
    kept = store.ask("GET", f"/kept?list-type=2&prefix=jobs/{job}/").decode()
    assert f"<Key>jobs/{job}/result.json</Key>" in kept and "targets.json" not in kept
    assert not [path for path in state.rglob("*") if path.name == "events.jsonl"]


@pytest.mark.slow
def test_nodes_that_share_no_folder_are_killed_and_go_on_to_the_same_bits(
    store: Store, forks: Forks, spec: Path, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster  # late: the other tests do without

    run, nodes = f"{store.address}/nodes", [tmp_path / "one", tmp_path / "two"]
    cluster = Cluster()
    try:
        for folder in nodes:
            cluster.add_node(num_cpus=2, include_dashboard=False, env_vars=machine(store, folder))
        words = ("train", spec, "--format", "json", "--run-dir", run, "--address", cluster.address)
        words += ("--set", "placement.strategy=SPREAD")
        with Going(forks.start(*words, **machine(store, tmp_path / "here"))) as going:
            started = going.until("started")[-1]
            while going.until("checkpoint")[-1]["step"] < 20:
                pass
            going.process.kill()
            for pid in (started["pids"]["trainer"], *started["pids"]["blocks"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert started["nodes"] == 2
        outcome = forks.run(*words, "--resume", **machine(store, tmp_path / "there"))
    finally:
        cluster.shutdown()
    assert outcome.code == 0 and outcome.of("started")[0]["step"] >= 20, outcome
    assert forks.run(*local(spec, tmp_path / "folder")).code == 0
    expected = exported(forks, tmp_path / "folder", tmp_path / "expected.safetensors")
    found = exported(forks, run, tmp_path / "found.safetensors", **machine(store, tmp_path / "else"))
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    there = store.ask("GET", "/kept?list-type=2&prefix=nodes/").decode()
    for name in ("timeline/block-0.jsonl", "timeline/block-1.jsonl", "logs/block-0.log", "logs/block-1.log"):
        assert f"<Key>nodes/{name}</Key>" in there
    own = [{path.name for path in folder.glob("lowdimfa-*/*/*/logs/block-*.log")} for folder in nodes]
    assert all(own)
