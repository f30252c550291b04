"""An environment of its own for trackers, whose packages don't agree with those of this project's tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import SECONDS, environment
from filelock import FileLock

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).parent / "trackers.txt"
FOLDER = ROOT / ".venv-trackers"
PYTHON = FOLDER / "bin" / "python"


def made() -> Path:
    """Return the interpreter of the environment, which is made where it isn't there; skip the test where it can't be."""
    stamp = FOLDER / "complete"
    with FileLock(f"{FOLDER}.lock"):
        if stamp.is_file() and stamp.read_text() == PINS.read_text():
            return PYTHON
        shutil.rmtree(FOLDER, ignore_errors=True)
        venv.create(FOLDER, with_pip=True)
        command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "-r", PINS]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no environment with MLflow and W&B can be made: {done.stderr.strip()[-300:]}")
        (packages,) = (FOLDER / "lib").glob("python*/site-packages")
        others = [ROOT, *{sysconfig.get_path(name) for name in ("purelib", "platlib")}, *sys.path]
        lines = dict.fromkeys(
            str(path) for path in others if str(path).endswith("site-packages") or path == ROOT
        )
        (packages / "after.pth").write_text("\n".join(lines) + "\n")
        stamp.write_text(PINS.read_text())
    return PYTHON


def run(*arguments: object, **more: str) -> str:
    """Run the environment's interpreter and return what it prints."""
    done = subprocess.run(
        [made(), *map(str, arguments)],
        env=quiet(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def train(spec: Path, run_dir: Path, *arguments: object) -> list[dict[str, Any]]:
    """Train in this environment, in one process, and return the events."""
    command = "from lowdimfa.services.cli.main import main; main()"
    where = ("--engine", "local", "--format", "json", "--run-dir", run_dir)
    printed = run("-c", command, "train", spec, *where, *arguments)
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def quiet(**more: str) -> dict[str, str]:
    """Return an environment in which nothing asks the network who it is."""
    told = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
    return {
        name: value for name, value in environment(**told, **more).items() if name != "MLFLOW_TRACKING_URI"
    }


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run an MLflow server on this machine and give its address."""
    port = _free_port()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                made(), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", folder / "files",
            ],
            env=quiet(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(SECONDS)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < until, "MLflow's server didn't come up"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
