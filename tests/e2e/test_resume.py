"""A run whose processes are all killed goes on from its last checkpoint to the very same weights."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

LOWDIMFA = Path(sys.executable).parent / "lowdimfa"

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:cnn",
        "args": {"in_channels": 1, "channels": [4, 8, 8], "classes": 10, "image_size": 8, "dropout": 0.1},
        "blocks": 3,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "feedback": {"q_rule": "probed", "p_rule": "oja", "error_dim": 6, "probe_every": 2},
    "train": {
        "epochs": 20,
        "batch_size": 50,
        "microbatches": 2,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
        "scheduler": {"factory": "torch.optim.lr_scheduler.OneCycleLR", "args": {"max_lr": 0.003}},
        "grad_clip": 1.0,
    },
    "run": {"evaluate_every_epochs": 0, "checkpoint_every": 70, "liveness_seconds": 30.0},
}


def start(spec: Path, run_dir: Path, *extra: str) -> subprocess.Popen[str]:
    command = [LOWDIMFA, "train", spec, "--run-dir", run_dir, "--format", "json", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=300)
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert process.returncode == 0, last
    assert last["event"] == "finished"
    return last


def exported(run_dir: Path) -> dict[str, Any]:
    output = run_dir.with_suffix(".safetensors")
    subprocess.run([LOWDIMFA, "export", run_dir, "--output", output], check=True, timeout=60)
    return load_file(output)


def kill_all(pids: list[int]) -> None:
    """SIGKILL processes and wait until they are gone."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended with another one
            processes.append(psutil.Process(pid))
            processes[-1].kill()
    _, alive = psutil.wait_procs(processes, 20)
    assert not alive


@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPECIFICATION))
    whole = finish(start(spec, tmp_path / "whole"))

    process = start(spec, tmp_path / "killed")
    assert process.stdout is not None
    pids: list[int] = []
    ray_processes: list[int] = []
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "started":
            pids = [event["pids"]["trainer"], *event["pids"]["blocks"]]
            ray_processes = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        if event["event"] == "checkpoint" and event["step"] >= 140:
            break
    assert len(set(pids)) == 4
    process.kill()
    kill_all(pids)
    kill_all(ray_processes)  # Ray's own, which would end a little later by themselves
    process.stdout.close()
    assert process.wait(20) == -signal.SIGKILL
    last = f"step-{whole['steps']:08d}"
    assert not (tmp_path / "killed" / "checkpoints" / last).exists()

    resumed = finish(start(spec, tmp_path / "killed", "--resume"))
    assert {key: resumed[key] for key in ("steps", "samples", "test_loss", "test_accuracy")} == {
        key: whole[key] for key in ("steps", "samples", "test_loss", "test_accuracy")
    }
    found, expected = exported(tmp_path / "killed"), exported(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
