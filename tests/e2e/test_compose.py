"""`docker compose up`, and a job from outside: trained over several containers, seen in Prometheus, stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from command import DIGITS, Outcome, lowdimfa, settings
from prometheus import Prometheus, dashboard_expressions
from stack import ROOT, Stack, require_engine, stack, until

from lowdimfa.services.monitoring.metrics_table import METRICS

BLOCKS = 4
CHECK_TORCH = ROOT / "deploy/docker/check_torch.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_from_outside_trains_over_several_containers() -> None:
    require_engine()
    with stack() as project:
        project.compose("build", "--quiet", seconds=600)
        services = ("coordinator", "worker", "prometheus")
        project.compose("up", "--detach", "--wait", "--wait-timeout", 240, *services, seconds=300)
        assert len(project.compose("ps", "--quiet", "worker").split()) == 2
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
