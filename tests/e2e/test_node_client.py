"""A client in another language, made from `proto/` alone, submits, watches and stops a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from command import DIGITS, Going
from forks import Forks
from ray.cluster_utils import Cluster
from service import Service, service

pytestmark = pytest.mark.slow
SOURCES = Path(__file__).parent / "node_client"


class Node:
    """The client, installed in a folder of its own."""

    def __init__(self, folder: Path, served: Service) -> None:
        self._script = folder / "client.js"
        self._environment = os.environ | {
            "LOWDIMFA_COORDINATOR": served.address,
            "LOWDIMFA_PROTO": str(Path(__file__).parents[2] / "proto"),
        }

    def start(self, *words: object) -> Going:
        return Going(
            subprocess.Popen(
                ["node", self._script, *map(str, words)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def run(self, *words: object) -> tuple[int, list[dict[str, Any]]]:
        """Return exit code and what it printed."""
        with self.start(*words) as going:
            ended = going.end()
        return ended.code, ended.events

    def one(self, *words: object) -> dict[str, Any]:
        code, (reply,) = self.run(*words)
        assert code == 0, reply
        return reply


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no command {program}")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(SOURCES, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"npm can't install the client's packages: {done.stderr.strip()[-500:]}")
    return folder


@pytest.fixture(scope="module")
def node(
    installed: Path, forks: Forks, shared_ray: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """Give the client of a service with TLS and tokens."""
    folder = tmp_path_factory.mktemp("served")
    assert forks.run("certs", folder / "tls").code == 0
    tokens = folder / "tokens.json"
    added = forks.run("tokens", "add", "node", "--role", "submit", "--file", tokens, "--format", "json")
    with pytest.MonkeyPatch.context() as patch:  # for the commands that clear up, too
        patch.setenv("LOWDIMFA_TOKEN", json.loads(added.stdout)["token"])
        patch.setenv("LOWDIMFA_CA", str(folder / "tls/ca.crt"))
        options = ("--tls-cert", folder / "tls/server.crt", "--tls-key", folder / "tls/server.key")
        with service(
            folder, forks, *options, "--tokens", tokens, "--ray-address", shared_ray.address
        ) as served:
            yield Node(installed, served)


def test_it_submits_watches_and_stops_a_job(node: Node, tmp_path: Path) -> None:
    endless = tmp_path / "endless.yaml"
    endless.write_text(
        DIGITS.read_text("utf-8").replace("epochs: 20", "epochs: 5000").replace("blocks: 4", "blocks: 2")
        + "  log_every: 5\n",
        "utf-8",
    )
    submitted = node.one("submit", "from-node", endless)
    assert submitted["created"] is True
    job = submitted["job"]["id"]
    assert job.startswith("from-node-") and submitted["job"]["owner"] == "node"

    with node.start("watch", job) as watch:
        events = watch.until("progress")
        assert node.one("get", job)["job"]["state"] == "JOB_STATE_RUNNING"
        assert node.one("stop", job)["job"]["state"] == "JOB_STATE_STOPPING"
        ended = watch.end()
    assert ended.code == 0
    events += ended.events
    states = [event["state"]["state"] for event in events if event["event"] == "state"]
    # It may say more than once that it is queued: what it waits for is in the detail.
    assert [state for state, _ in groupby(states)] == [
        f"JOB_STATE_{name}" for name in ("QUEUED", "STARTING", "RUNNING", "STOPPING", "STOPPED")
    ]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    kinds = {event["event"] for event in events}
    assert kinds >= {"state", "started", "progress", "checkpoint", "failed"}
    (started,) = (event["started"] for event in events if event["event"] == "started")
    assert started["blocks"] == 2 == len(started["pids"]["blocks"])

    middle = len(events) // 2
    code, again = node.run("watch", job, middle)
    assert (code, again) == (0, events[middle:])


def test_it_is_told_what_was_wrong(node: Node, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(DIGITS.read_text("utf-8").replace("epochs:", "epoch:"), "utf-8")
    code, (refusal,) = node.run("submit", "bad", bad)
    assert (code, refusal["code"]) == (1, "INVALID_ARGUMENT")
    assert "train.epoch" in refusal["message"]
    code, (refusal,) = node.run("get", "nothing")
    assert (code, refusal["code"]) == (1, "NOT_FOUND")
    code, (refusal,) = node.run("stop", "nothing", "now")
    assert (code, refusal["code"]) == (1, "NOT_FOUND")
