"""The coordinator's hand in the cluster may be slow, wrong or dead: the coordinator hears of it in time, and goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lowdimfa.services.coordinator import ray_runner
from lowdimfa.services.coordinator.ray_runner import RayRunner
from lowdimfa.services.coordinator.runner import Capacity, ClusterError, Condition

LIVENESS = 3.0

AGENT = """#!{python}
import json, os, sys, time
print(json.dumps({first}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    match request["call"]:
        case "capacity":
            print(json.dumps({{"answer": {{"cpus": 4, "gpus": 0, "free_cpus": 3, "free_gpus": 0}}}}), flush=True)
        case "look":
            found = {{name: {{"condition": "alive", "outcome": None}} for name in request["arguments"]["trainers"]}}
            print(json.dumps({{"answer": found}}), flush=True)
        case "stop":
            time.sleep(60)
        case "release":
            os._exit(1)
"""


class Agents:
    """What a runner starts instead of the real agent."""

    def __init__(self, folder: Path, first: str) -> None:
        script = folder / "agent"
        script.write_text(AGENT.format(python=sys.executable, first=first))
        script.chmod(0o755)
        self.path = str(script)
        self.log = folder / "agent.log"

    def alive(self) -> list[psutil.Process]:
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if process.status() != psutil.STATUS_ZOMBIE and self.path in " ".join(process.cmdline())
        ]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RayRunner, Agents]]:
    agents = Agents(tmp_path, '{"answer": None}')
    monkeypatch.setattr(ray_runner.sys, "executable", agents.path)
    monkeypatch.setattr(ray_runner, "unreachable", lambda address, seconds: "")
    made = RayRunner(lambda: "127.0.0.1:1", LIVENESS, agents.log)
    yield made, agents
    made.close()
    assert not agents.alive()


def test_one_agent_answers_call_after_call(runner: tuple[RayRunner, Agents]) -> None:
    made, agents = runner
    assert made.capacity() == Capacity(4, 0, 3, 0)
    (first,) = agents.alive()
    assert made.look(["a", "b"])["b"].condition is Condition.alive
    assert made.look([]) == {}
    assert agents.alive() == [first]


def test_an_agent_that_stays_silent_is_ended_in_time_and_replaced(runner: tuple[RayRunner, Agents]) -> None:
    made, agents = runner
    made.capacity()
    (first,) = agents.alive()
    began = time.monotonic()
    with pytest.raises(ClusterError, match="no answer to 'stop' within 3 s"):
        made.stop("a", now=True)
    assert time.monotonic() - began < 10 * LIVENESS
    assert first not in agents.alive()
    assert made.capacity().cpus == 4


def test_a_cluster_that_goes_away_during_a_call_is_noticed_before_the_call_s_time_is_up(
    runner: tuple[RayRunner, Agents], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = runner
    made.capacity()
    monkeypatch.setattr(ray_runner, "unreachable", lambda address, seconds: "connection refused")
    with pytest.raises(
        ClusterError, match=r"nothing answers at 127\.0\.0\.1:1 any more \(connection refused\)"
    ):
        made.stop("a", now=True)  # which the agent would answer after a minute


def test_an_agent_that_dies_is_replaced(runner: tuple[RayRunner, Agents]) -> None:
    made, _ = runner
    with pytest.raises(ClusterError, match="its agent ended during 'release'"):
        made.release("a")
    assert made.capacity().cpus == 4


def test_a_cluster_that_can_not_be_joined_is_said_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = Agents(tmp_path, '{"error": "no such cluster"}')
    monkeypatch.setattr(ray_runner.sys, "executable", agents.path)
    monkeypatch.setattr(ray_runner, "unreachable", lambda address, seconds: "")
    made = RayRunner(lambda: "127.0.0.1:1", LIVENESS, agents.log)
    with pytest.raises(ClusterError, match="no such cluster"):
        made.capacity()
    made.close()
    assert not agents.alive()


def test_nothing_is_started_for_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    made = RayRunner(lambda: "127.0.0.1:1", LIVENESS, tmp_path / "agent.log")
    with pytest.raises(ClusterError, match=r"nothing answers at 127\.0\.0\.1:1"):
        made.capacity()
    assert not (tmp_path / "agent.log").exists()
    made.close()
