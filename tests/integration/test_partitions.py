"""Links that are cut between hosts: a short cut loses nothing, and a lasting one is recovered on another host."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from specifications import specification

from benchmarks.throughput.hosts import NoHostsError
from benchmarks.throughput.ray_hosts import NODE_DEATH_SECONDS, SURVIVED_CUT_SECONDS, RayHosts, ray_hosts
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer

LIVENESS = 20.0
"""After a cut of 2 s a busy machine may need 10 s: TCP tries again after pauses that double."""

RUN_SECONDS = 300.0

START_SECONDS = 30.0
"""Until a block that is placed runs: its process imports torch and Ray, beside the others on the same two cores."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

USER_MODEL = """
import time

from torch import nn


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs):
        if not inputs.is_meta:
            time.sleep(self.seconds)
        return inputs


def make(seconds):
    first, second = (nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), Slow(seconds), first, second, nn.Linear(32, 10))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    """The command runs on host 0, two of the other three hosts get a block."""
    try:
        with ray_hosts(4) as cluster:
            yield cluster
    except NoHostsError as reason:
        pytest.skip(str(reason))


def slow_specification(pause: float, **run: Any) -> dict[str, Any]:
    """Return a run of two blocks, one to a host, that takes some 10 s with a pause of 10 ms per micro-batch."""
    plain = specification(
        "mlp",
        2,
        "probed",
        train={"steps": 240, "scheduler": None, "log_every": 10},
        placement={"strategy": "SPREAD"},
        run={"liveness_seconds": LIVENESS} | run,
    )
    plain["model"] = {"factory": "slow_model:make", "args": {"seconds": pause}, "blocks": ["5"]}
    return plain


@dataclass
class Run:
    """A run in the cluster that goes on while the test looks at it."""

    process: subprocess.Popen[str]
    errors: Path
    events: list[dict[str, Any]]

    def until(self, kind: str, step: int = 0) -> dict[str, Any]:
        """Return the next event of a kind, from a step on."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == kind and self.events[-1].get("step", step) >= step:
                return self.events[-1]
        raise AssertionError(f"no {kind!r} before the end: {self.events[-3:]}\n{self.errors.read_text()}")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def end(self) -> int:
        """Read all events that are left; return the exit code."""
        assert self.process.stdout is not None
        self.events += [json.loads(line) for line in self.process.stdout]
        return self.process.wait()


@contextmanager
def running(cluster: RayHosts, plain: dict[str, Any], folder: Path) -> Iterator[Run]:
    """Give a run that the command on host 0 started."""
    (folder / "slow_model.py").write_text(USER_MODEL)
    (folder / "spec.yaml").write_text(yaml.safe_dump(plain))
    command = [Path(sys.executable).parent / "lowdimfa", "train", folder / "spec.yaml", "--format", "json"]
    command += ["--address", cluster.address, "--run-dir", folder / "run"]
    process = cluster.run(0, command, folder / "stderr")
    timer = threading.Timer(RUN_SECONDS, process.kill)
    timer.start()
    try:
        yield Run(process, folder / "stderr", [])
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def hosts_of(cluster: RayHosts, run: Run) -> tuple[int, list[int]]:
    """Return the hosts of the trainer, which Ray places where it likes, and of the blocks."""
    pids = run.until("started")["pids"]
    return cluster.hosts.host_of(pids["trainer"]), [cluster.hosts.host_of(pid) for pid in pids["blocks"]]


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def test_links_cut_for_a_moment_lose_nothing(cluster: RayHosts, tmp_path: Path) -> None:
    """Those of the blocks, of the trainer, and of the cluster's head with the command, one after the other."""
    with running(cluster, slow_specification(0.01), tmp_path) as run:
        trainer, blocks = hosts_of(cluster, run)
        assert len({0, *blocks}) == 3
        victims = list(dict.fromkeys((*blocks, trainer, 0)))
        for number, victim in enumerate(victims, 1):
            run.until("progress", number * 40)
            cluster.hosts.cut(victim)
            time.sleep(SURVIVED_CUT_SECONDS)  # the cut itself, which nothing announces
            cluster.hosts.mend(victim)
        assert run.end() == 0, run.errors.read_text()
    silences = sorted(
        after - before for before, after in itertools.pairwise(event["time"] for event in run.events)
    )
    assert all(
        silence > SURVIVED_CUT_SECONDS / 2 for silence in silences[-2:]
    )  # the blocks were cut off indeed
    assert not run.of("recovering") and not run.of("warning")

    undisturbed = slow_specification(0.0)
    DecoupledTrainer(undisturbed, engine="local", run_dir=tmp_path / "local", user_code=tmp_path).fit()
    found, expected = exported(tmp_path / "run"), exported(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_link_cut_for_good_is_recovered_on_another_host(cluster: RayHosts, tmp_path: Path) -> None:
    """And when the lost block's host is back after that, it changes nothing."""
    plain = slow_specification(0.01, on_failure="rejoin", snapshot_every=10)
    with running(cluster, plain, tmp_path) as run:
        trainer, blocks = hosts_of(cluster, run)
        lost = next(index for index, host in enumerate(blocks) if host != trainer)
        (spare,) = {1, 2, 3} - set(blocks)
        run.until("progress", 60)
        began = time.time()
        cluster.hosts.cut(blocks[lost])
        recovering = run.until("recovering")
        recovered = run.until("recovered")
        assert cluster.hosts.host_of(recovered["pids"]["blocks"][lost]) == spare
        run.until("progress", recovered["step"] + 20)
        cluster.hosts.mend(blocks[lost])
        assert run.end() == 0, run.errors.read_text()
    assert recovering["blocks"] == recovered["blocks"] == [lost]
    # Ray or the trainer misses the block first; there is no other place for it before Ray calls the node dead.
    assert recovered["time"] - began < max(LIVENESS, NODE_DEATH_SECONDS) + START_SECONDS
    # Nothing is missed when the block's last snapshot was of the very step at which the others stood.
    assert recovered["missed"].keys() <= {str(lost)}
    assert recovered["missed"].get(str(lost), 0) <= 10 + 1
    assert len(run.of("recovered")) == 1
    assert run.of("finished")[0]["test_accuracy"] > 0.9
