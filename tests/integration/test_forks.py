"""A fork server's processes are what they would be had they been started, and without one they are started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lowdimfa.services.coordinator.ray_holder import lives
from lowdimfa.services.trainer import forks

RAYLET = "4194304"  # no process has this identifier

WORKER = """
import json, os, random, sys
if "torch" in sys.modules:  # an ordinary process has it to import first
    import numpy, torch
    random.random = lambda draw=random.random: [draw(), float(numpy.random.rand())]
links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
json.dump({
    "arguments": sys.argv[1:], "name": __name__, "path": sys.path[0], "folder": os.getcwd(), "parent": os.getppid(),
    "environment": dict(os.environ), "leads": os.getpgrp() == os.getpid(), "read": sys.stdin.read(),
    "compiler": "torch._dynamo" in sys.modules, "draws": random.random(),
    "threads": torch.get_num_threads() if "torch" in sys.modules else None,
    "open": [os.readlink(link) for link in links if os.path.islink(link)],
}, sys.stdout)
sys.stdout.flush()
if "--die" in sys.argv:
    os.kill(os.getpid(), 9)
if "--raise" in sys.argv:
    raise ValueError("of a worker")
sys.exit(7)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[forks.ForkServer]:
    server = forks.take()
    assert server is not None
    yield server
    server.end()


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "default_worker.py"  # as Ray names it
    path.write_text(WORKER)
    return path


def run(server: forks.ForkServer, *command: object, raylet: str = RAYLET) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "RAYLET_PID": raylet, "OF_THE_WORKER": "1"}
    return subprocess.run(
        [server.folder / "python", *map(str, command)],
        input="said",
        capture_output=True,
        text=True,
        env=environment,
        cwd=server.folder,
        timeout=120,
    )


def test_a_worker_is_a_fork_and_what_python_would_have_made(server: forks.ForkServer, worker: Path) -> None:
    seen, again = run(server, worker, "--one=1", "two"), run(server, worker)
    assert (seen.returncode, seen.stderr) == (7, "")
    found, other = json.loads(seen.stdout), json.loads(again.stdout)
    assert found["arguments"] == ["--one=1", "two"] and found["name"] == "__main__"
    assert found["path"] == str(worker.parent) and found["folder"] == str(server.folder)
    assert found["environment"]["OF_THE_WORKER"] == "1"
    assert "PYTEST_CURRENT_TEST" in os.environ and "PYTEST_CURRENT_TEST" not in found["environment"]
    assert found["read"] == "said" and found["leads"] and found["compiler"] and found["threads"] == 1
    assert found["parent"] == other["parent"] and psutil.Process(found["parent"]).ppid() == os.getpid()
    assert not set(found["draws"]) & set(other["draws"])
    assert not [name for name in found["open"] if "socket" in name]


def test_how_a_worker_ends_is_told(server: forks.ForkServer, worker: Path) -> None:
    assert run(server, worker, "--die").returncode == 128 + signal.SIGKILL
    failed = run(server, worker, "--raise")
    assert failed.returncode == 1 and "ValueError: of a worker" in failed.stderr


def test_what_is_no_worker_of_this_ray_is_an_ordinary_python(server: forks.ForkServer, worker: Path) -> None:
    run(server, worker)  # the first says whose workers it forks
    stranger = json.loads(run(server, worker, raylet="1").stdout)
    assert stranger["parent"] == os.getpid() and not stranger["compiler"]
    assert run(server, "-c", "print(6 * 7)").stdout == "42\n"


@pytest.mark.parametrize("there", [False, True], ids=["none", "dead"])
def test_without_a_server_workers_start_all_the_same(there: bool, worker: Path) -> None:
    server = forks.take()
    assert server is not None
    (process,) = [
        child for child in psutil.Process().children() if "fork_server" in " ".join(child.cmdline())
    ][-1:]
    process.kill()
    server.wait()
    if not there:
        (server.folder / "socket").unlink()
    ended = run(server, worker)
    assert ended.returncode == 7 and json.loads(ended.stdout)["parent"] == os.getpid()
    server.end()
    assert not server.folder.exists()


def test_a_server_ends_with_whoever_started_it() -> None:
    script = (
        "import os, psutil\n"
        "from lowdimfa.services.trainer import forks\n"
        "forks.take()\n"
        "print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "os._exit(1)\n"  # as if it had been killed: nothing is ended on the way out
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    (number,) = map(int, said.split())
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(number)
        while lives(server):  # the suite's deadline counts
            psutil.wait_procs([server], timeout=0.1)
