"""`docker compose up`, and a job from outside: trained over several containers, seen in Prometheus, stopped.

And with an object store: containers without a folder that they share, one of them killed, and the store too.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command import DIGITS, SECONDS, Going, Outcome, local, lowdimfa, settings
from forks import Forks
from objects import SECRET, SIGNED, Store, running
from prometheus import Prometheus, dashboard_expressions
from safetensors.torch import load_file
from stack import ROOT, Stack, require_engine, run, stack, taken_down, until

from lowdimfa.services.monitoring.metrics_table import METRICS

BLOCKS = 4
CHECK_TORCH = ROOT / "deploy/docker/check_torch.py"


@pytest.fixture(scope="module")
def built() -> Iterator[Stack]:
    require_engine()
    with stack() as project:
        project.compose("build", "--quiet", seconds=600)
        yield project


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_from_outside_trains_over_several_containers(built: Stack) -> None:
    with taken_down(built.overlaid()) as project:
        up(project, "coordinator", "worker", "prometheus")
        coordinator = project.address("coordinator", 50051)
        prometheus = Prometheus(project.address("prometheus", 9090))
        try:
            trains_to_the_end(coordinator, prometheus)
            fails(coordinator)
            is_stopped(coordinator, prometheus)
        except BaseException:
            print(project.logs())
            raise
        runs_hardened(project)


def up(project: Stack, *services: str) -> None:
    project.compose("up", "--detach", "--wait", "--wait-timeout", 240, *services, seconds=300)
    assert len(project.compose("ps", "--quiet", "worker").split()) == 2


HELD = """
import time
import urllib.error
import urllib.request
from torch import nn

class Held(nn.Module):
    calls = 0

    def closed(self):
        gate = urllib.request.Request({gate!r}, headers={{"Authorization": {signed!r}}})
        try:
            urllib.request.urlopen(gate, timeout=10).close()
        except urllib.error.HTTPError:  # it isn't there any more
            self.calls = -1_000_000
            return False
        except OSError:
            pass
        return True

    def forward(self, inputs):
        self.calls += 1
        while self.calls > 25 and self.closed():
            time.sleep(0.05)
        return inputs

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Held(), nn.Tanh(), nn.Linear(32, 10))
"""
SPECIFICATION: dict[str, Any] = {
    "model": {"factory": "held:make_model", "blocks": 2},
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {
        "steps": 80,
        "batch_size": 50,
        "log_every": 5,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
    },
    "placement": {"strategy": "SPREAD"},
    "run": {"evaluate_every_epochs": 0, "checkpoint_every": 10, "on_failure": "restart"},
}


def address_of(interface: str) -> str:
    """Return the IPv4 address of this machine on a network."""
    found = psutil.net_if_addrs()[interface]
    return next(one.address for one in found if one.family == socket.AF_INET)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_containers_that_share_no_folder_are_killed_with_their_store_and_come_to_the_same_bits(
    built: Stack, forks: Forks, tmp_path: Path
) -> None:
    asked = run(
        ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"], 30
    )
    host = asked.stdout.strip() or address_of("docker0")  # an engine may not say it
    with running("0.0.0.0") as store:
        environment = store.reached_by(host)
        store.ask("PUT", "/kept/gate", b"closed")
        gate = {"gate": f"{environment['AWS_ENDPOINT_URL']}/kept/gate", "signed": SIGNED}
        (tmp_path / "held.py").write_text(HELD.format(**gate))
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
        keep = {"LOWDIMFA_STORAGE": f"{store.address}/runs", **environment}
        with taken_down(built.overlaid("s3.yml", **keep)) as project:
            up(project, "coordinator", "worker")
            try:
                job = survives(project, store, forks, tmp_path / "spec.yaml")
            except BaseException:
                print(project.logs())
                raise
            assert SECRET not in project.logs()
        assert forks.run(*local(tmp_path / "spec.yaml", tmp_path / "folder")).code == 0
        there = f"{store.address}/runs/{job}"
        found = exported(forks, there, tmp_path / "found.safetensors", TMPDIR=str(tmp_path), **environment)
    expected = exported(forks, tmp_path / "folder", tmp_path / "expected.safetensors")
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def survives(project: Stack, store: Store, forks: Forks, spec: Path) -> str:
    """Run a job while a worker's container and the store are killed, and return its name."""
    for service in ("coordinator", "ray-head", "worker"):
        (container,) = project.compose("ps", "--quiet", service).split()[:1]
        mounts = run(
            ["docker", "inspect", container, "--format", "{{range .Mounts}}{{.Destination}} {{end}}"], 30
        )
        own = {"/state"} if service == "coordinator" else set()
        assert set(mounts.stdout.split()) == {"/run/lowdimfa/ray"} | own, service
    coordinator = {"LOWDIMFA_COORDINATOR": project.address("coordinator", 50051)}
    command = ("submit", spec, "--watch", "--format", "json")
    with Going(forks.start(*command, **coordinator)) as going:
        started = going.until("started")[-1]
        assert started["nodes"] == 2
        job = started["run_dir"].rpartition("/")[2]
        while going.until("checkpoint")[-1]["step"] < 20:
            pass
        with urllib.request.urlopen(
            f"http://{project.address('coordinator', 9464)}/targets", timeout=SECONDS
        ) as told:
            (first,) = [entry for entry in json.load(told) if entry["labels"].get("block") == "0"]
        address = first["targets"][0].rpartition(":")[0]
        store.way.fault, store.way.struck = "torn", threading.Semaphore(0)
        run(["docker", "kill", container_at(project, address)], 60)
        store.ask("DELETE", "/kept/gate")
        assert going.until("recovering")[-1]["policy"] == "restart"
        assert store.way.struck.acquire(timeout=SECONDS)  # a checkpoint is being written
        store.restart()
        outcome = going.end()
    assert outcome.code == 0 and outcome.of("finished"), outcome
    assert [event["step"] for event in outcome.of("checkpoint")][:1] == [30] and not outcome.of(
        "checkpoint_failed"
    )
    log = lowdimfa("logs", job, **coordinator)
    assert log.code == 0
    assert (
        SECRET
        not in outcome.stdout + log.stdout + store.ask("GET", f"/kept/runs/{job}/events.jsonl").decode()
    )
    return str(job)


def container_at(project: Stack, address: str) -> str:
    """Return the worker's container that has an address."""
    wanted = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    found = project.compose("ps", "--quiet", "worker").split()
    by_address = {
        run(["docker", "inspect", name, "--format", wanted], 30).stdout.strip(): name for name in found
    }
    return by_address[address]


def exported(forks: Forks, place: object, output: Path, **more: str) -> dict[str, Any]:
    outcome = forks.run("export", place, "--output", output, **more)
    assert outcome.code == 0, outcome
    return load_file(output)


def trains_to_the_end(coordinator: str, prometheus: Prometheus) -> None:
    """Submit a job and watch it: it finishes, and Prometheus has every metric of every block."""
    submitted = submit(coordinator, "--watch", train__epochs=80)
    assert submitted.code == 0, submitted
    sequences = [event["sequence"] for event in submitted.events]
    assert sequences == list(range(1, len(sequences) + 1))
    finished = submitted.of("finished")[0]
    assert finished["blocks"] == BLOCKS and finished["test_accuracy"] > 0.9
    job = finished["run_dir"].rpartition("/")[2]
    assert job_of(coordinator, job)["state"] == "finished"

    seen = prometheus.series(f'last_over_time({{__name__=~"lowdimfa_.+", job="{job}"}}[5m])')
    names: dict[str, set[str]] = {}
    for series in seen:
        names.setdefault(series.get("block", "trainer"), set()).add(series["__name__"])
    served = [metric for metric in METRICS if metric.process == "block"]
    everywhere = {
        metric.name
        for metric in served
        if "subscriber" not in metric.labels and not metric.name.startswith("lowdimfa_head_")
    }
    assert set(names) == {*map(str, range(BLOCKS)), "trainer"}
    for block in range(BLOCKS):
        expected = {metric.name for metric in served} if block == BLOCKS - 1 else everywhere
        assert expected <= names[str(block)], (block, expected - names[str(block)])
    containers = {series["instance"].partition(":")[0] for series in seen if "block" in series}
    assert len(containers) == 2, containers


def fails(coordinator: str) -> None:
    """Submit a job without data: its trainer, in a container, says what is wrong."""
    failed = submit(coordinator, "--watch", data__factory="nowhere:data")
    assert failed.code == 2, failed
    assert "nowhere:data" in failed.stderr + failed.stdout


def is_stopped(coordinator: str, prometheus: Prometheus) -> None:
    """Let a long job run until every dashboard shows something, then stop it: it writes a checkpoint."""
    submitted = submit(
        coordinator, train__epochs=100_000, run__checkpoint_every=500, run__alignment_every=500
    )
    assert submitted.code == 0, submitted
    job = json.loads(submitted.stdout)["job"]["id"]
    until(lambda: job_of(coordinator, job)["state"] == "running", 120, "the job runs")
    expressions = dashboard_expressions(ROOT / "deploy/grafana/dashboards", job=job)
    assert expressions
    empty = set(expressions)
    deadline = time.monotonic() + 120
    while empty and time.monotonic() < deadline:
        empty = {place for place in empty if not prometheus.series(expressions[place])}
    assert not empty, {place: expressions[place] for place in empty}

    assert lowdimfa("stop", job, LOWDIMFA_COORDINATOR=coordinator).code == 0
    watched = lowdimfa("watch", job, "--format", "json", LOWDIMFA_COORDINATOR=coordinator)
    assert watched.of("checkpoint")
    assert job_of(coordinator, job)["state"] == "stopped"
    until(lambda: not prometheus.series(f'up{{job="{job}"}}'), 60, "Prometheus lets the job's processes go")


def submit(coordinator: str, *options: str, **values: object) -> Outcome:
    """Submit the digits with some settings; the output is JSON."""
    arguments = (DIGITS, "--format", "json", *options, *settings(**values))
    return lowdimfa("submit", *arguments, LOWDIMFA_COORDINATOR=coordinator)


def job_of(coordinator: str, job: str) -> dict[str, Any]:
    asked = lowdimfa("status", job, "--format", "json", LOWDIMFA_COORDINATOR=coordinator)
    assert asked.code == 0, asked
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def runs_hardened(project: Stack) -> None:
    """No container can write to its image, gain rights, or runs as root; Ray's token is in no output."""
    token = project.compose("exec", "--no-TTY", "coordinator", "cat", "/run/lowdimfa/ray/token")
    assert len(token) == 64
    for service in ("coordinator", "ray-head", "worker", "prometheus"):
        status = project.compose("exec", "--no-TTY", service, "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert "0" not in fields["Uid"].split(), service
        assert int(fields["CapBnd"], 16) == 0, service
        assert fields["NoNewPrivs"] == "1", service
        root = project.compose("exec", "--no-TTY", service, "cat", "/proc/mounts").splitlines()[0].split()
        assert root[1] == "/" and root[3].startswith("ro,"), service
    assert token not in project.logs()


@pytest.mark.parametrize(
    ("variant", "words"), [("tpu", ["'tpu'", "cpu or cuda"]), ("other", ["TORCH_INDEX", "wheels"])]
)
def test_a_build_with_another_torch_than_asked_for_is_refused(variant: str, words: list[str]) -> None:
    import torch

    asked = ("cuda" if torch.version.cuda is None else "cpu") if variant == "other" else variant
    checked = subprocess.run(
        [sys.executable, CHECK_TORCH, asked], capture_output=True, text=True, timeout=120
    )
    assert checked.returncode == 1
    for word in words:
        assert word in checked.stderr
