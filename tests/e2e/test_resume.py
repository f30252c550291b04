"""A run whose trainer, or all of whose processes, are killed goes on to the very same weights."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from command import Going, held, local, started
from forks import Forks
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:cnn",
        "args": {"in_channels": 1, "channels": [4, 8, 8], "classes": 10, "image_size": 8, "dropout": 0.1},
        "blocks": 3,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "feedback": {"q_rule": "probed", "p_rule": "oja", "error_dim": 6, "probe_every": 2},
    "train": {
        "steps": 240,
        "batch_size": 50,
        "microbatches": 2,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
        "scheduler": {"factory": "torch.optim.lr_scheduler.OneCycleLR", "args": {"max_lr": 0.003}},
        "grad_clip": 1.0,
    },
    "run": {"evaluate_every_epochs": 0, "checkpoint_every": 30, "liveness_seconds": 30.0},
}


pytestmark = pytest.mark.timeout(3600)  # a command that hangs is silent, and is ended for that


def on_ray(spec: Path, run_dir: Path, *more: str) -> Going:
    """Start the installed command on Ray: one of its own, or that at an address."""
    return started("train", spec, "--run-dir", run_dir, "--format", "json", *more)


def finish(going: Going) -> dict[str, Any]:
    with going:
        outcome = going.end()
    assert outcome.code == 0, outcome
    assert outcome.said == []
    last = outcome.events[-1]
    assert last["event"] == "finished"
    return last


def kill_all(pids: list[int]) -> None:
    """SIGKILL processes and wait until they are gone."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended with another one
            processes.append(psutil.Process(pid))
            processes[-1].kill()
    _, alive = psutil.wait_procs(processes, 60)
    assert not alive


class Whole(NamedTuple):
    """A run that nothing disturbed, in one process."""

    spec: Path
    run_dir: Path
    finished: dict[str, Any]
    forks: Forks

    def equals(self, run_dir: Path, finished: dict[str, Any]) -> None:
        """Check that another run came to the same end, bit for bit."""
        for key in ("steps", "samples", "test_loss", "test_accuracy"):
            assert finished[key] == self.finished[key], key
        found, expected = self._exported(run_dir), self._exported(self.run_dir)
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)

    def _exported(self, run_dir: Path) -> dict[str, Any]:
        output = run_dir.with_suffix(".safetensors")
        assert self.forks.run("export", run_dir, "--output", output).code == 0
        return load_file(output)


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    spec, run_dir = folder / "spec.yaml", folder / "run"
    spec.write_text(yaml.safe_dump(SPECIFICATION))
    outcome = forks.run(*local(spec, run_dir))
    assert outcome.code == 0, outcome
    return Whole(spec, run_dir, outcome.events[-1], forks)


@pytest.mark.xdist_group("ray")
def test_killed_and_resumed_equals_never_interrupted(whole: Whole, tmp_path: Path) -> None:
    """Each time on a Ray of its own, which says nothing."""
    run_dir, spec = tmp_path / "killed", tmp_path / "spec.yaml"
    spec.write_bytes(whole.spec.read_bytes())
    with on_ray(spec, run_dir, *held(spec, "checkpoint-60")) as going:
        pids = going.until("started")[-1]["pids"]
        pids = [pids["trainer"], *pids["blocks"]]
        assert len(set(pids)) == 4
        while going.until("checkpoint")[-1]["step"] < 60:
            pass
        ray_processes = [child.pid for child in psutil.Process(going.process.pid).children(recursive=True)]
        going.process.kill()
        kill_all(pids)
        kill_all(ray_processes)  # Ray's own, which would end a little later by themselves
        assert going.end().code == -signal.SIGKILL
    last = f"step-{whole.finished['steps']:08d}"
    assert not (run_dir / "checkpoints" / last).exists()
    finished = finish(on_ray(spec, run_dir, "--resume"))
    assert finished.keys() == whole.finished.keys()
    whole.equals(run_dir, finished)


@pytest.mark.slow
def test_a_trainer_that_is_killed_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    whole: Whole, shared_ray: Cluster, tmp_path: Path
) -> None:
    run_dir, spec = tmp_path / "run", tmp_path / "spec.yaml"
    spec.write_bytes(whole.spec.read_bytes())
    events: list[dict[str, Any]] = []
    trainers: list[int] = []
    kill_at = ["started-0", "checkpoint-60"]  # before there is a checkpoint, and when there are two
    restart = ("--set", "run.on_failure=restart", "--address", shared_ray.address)
    with on_ray(spec, run_dir, *restart, *held(spec, *kill_at)) as going:
        for event in going.events():
            events.append(event)
            if event["event"] == "started":
                trainers.append(event["pids"]["trainer"])
            if kill_at and kill_at[0] == f"{event['event']}-{event.get('step')}":
                kill_all([trainers[-1]])
                (tmp_path / kill_at.pop(0)).unlink()
        assert going.end().code == 0, events[-1]
    assert not kill_at and len(set(trainers)) == 3
    logged = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert logged == events  # not one was missed
    kinds = [event["event"] for event in events if event["event"] != "progress"]
    begun = ["started", "recovering", "started", "recovered", "checkpoint", "checkpoint"]
    assert kinds[:8] == [*begun, "recovering", "started"]
    recovering = [event for event in events if event["event"] == "recovering"]
    assert [(event["recovery"], event["policy"], event["blocks"]) for event in recovering] == [
        (1, "restart", []),
        (2, "restart", []),
    ]
    first, second = (event for event in events if event["event"] == "recovered")
    assert (first["step"], second["step"]) == (0, 60)
    assert second["step"] <= recovering[1]["step"]
    assert first["policy"] == "restart" and first["missed"] == {} and first["seconds"] > 0
    whole.equals(run_dir, events[-1])
