"""A fork server's processes are what they would be had they been started, and without one they are started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lowdimfa.services.trainer import fork_client, forks
from lowdimfa.services.trainer.families import lives

WORKER = """
import json, os, random, sys
if "torch" in sys.modules:  # an ordinary process has it to import first
    import numpy, torch
    from ray import ObjectID
    numbers = lambda: [random.random(), float(numpy.random.rand()), ObjectID.from_random().hex()]
else:
    numbers = list
links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
json.dump({
    "arguments": sys.argv[1:], "name": __name__, "path": sys.path[0], "folder": os.getcwd(), "parent": os.getppid(),
    "environment": dict(os.environ), "leads": os.getpgrp() == os.getpid(), "read": sys.stdin.read(),
    "compiler": "torch._dynamo" in sys.modules, "draws": numbers(),
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


def run(server: forks.ForkServer, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "OF_THE_WORKER": "1"}
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


def test_what_is_no_worker_is_an_ordinary_python(server: forks.ForkServer) -> None:
    assert run(server, "-c", "import sys; print(6 * 7, 'torch' in sys.modules)").stdout == "42 False\n"


@pytest.mark.parametrize("there", [False, True], ids=["none", "dead"])
def test_without_a_server_workers_start_all_the_same(there: bool, worker: Path) -> None:
    before = {*psutil.Process().children()}
    server = forks.take()
    assert server is not None
    (process,) = {*psutil.Process().children()} - before
    process.kill()
    server.wait()
    if not there:
        (server.folder / "socket").unlink()
    ended = run(server, worker)
    assert ended.returncode == 7 and json.loads(ended.stdout)["parent"] == os.getpid()
    server.end()
    assert not server.folder.exists()


def test_a_worker_whose_folder_is_gone_is_an_ordinary_python(
    server: forks.ForkServer, tmp_path: Path
) -> None:
    environment = {"PATH": os.environ["PATH"]}
    gone = tmp_path / "gone"
    gone.mkdir()
    request = {"arguments": ["default_worker.py"], "environment": environment, "folder": str(gone)}
    gone.rmdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(str(server.folder / "socket"))
        body = json.dumps(request).encode()
        socket.send_fds(client, [len(body).to_bytes(fork_client.SIZE, "big") + body], [0, 1, 2])
        assert client.recv(1) == b""  # declined


def in_a_command(script: str, **variables: str) -> str:
    """Return what a Python says that runs a script as a command would."""
    text = f"from lowdimfa.services.trainer import forks\n{script}"
    return subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        timeout=120,
        check=True,
    ).stdout


def test_a_prepared_server_keeps_what_python_was_started_with(worker: Path, tmp_path: Path) -> None:
    worker.write_text("import signal, sys\nprint(sys.path[1:], signal.getsignal(signal.SIGINT))")
    script = (
        "import os, subprocess, sys\n"
        "forks.prepare()\n"
        "server = forks.take()\n"
        "for python in (sys.executable, server.folder / 'python'):\n"
        f"    subprocess.run([python, {str(worker)!r}, '-'])\n"
        "server.end()\n"
    )
    for safe in ("", "1"):
        said = in_a_command(script, PYTHONSAFEPATH=safe, PYTHONPATH=str(tmp_path / "of_the_user"))
        ordinary, forked = said.splitlines()
        entries = ordinary.removeprefix("[").partition("]")[0].split(", ")
        assert all(entry in forked for entry in entries) and "default_int_handler" in forked


@pytest.mark.parametrize(
    "where", ["too deep for a socket", pytest.param("mounted noexec", marks=pytest.mark.slow)]
)
def test_where_no_server_can_be_nothing_is_left(where: str, tmp_path: Path) -> None:
    folder = tmp_path / (where if "noexec" in where else where.ljust(100, "_"))
    folder.mkdir()
    mounted = "import os\nos.access = lambda *_: False\n" if "noexec" in where else ""
    said = in_a_command(f"{mounted}forks.prepare()\nprint(forks.take())", TMPDIR=str(folder))
    assert said == "None\n" and not [*folder.glob("lowdimfa-*")]


def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    script = (
        "import os, psutil\n"
        "forks.take()\n"
        "print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "os._exit(0)\n"  # as if it had been killed: nothing is ended on the way out
    )
    (number,) = map(int, in_a_command(script, TMPDIR=str(tmp_path)).split())
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(number)
        while lives(server):  # the suite's deadline counts
            psutil.wait_procs([server], timeout=0.1)
    assert not [*tmp_path.glob("lowdimfa-*")]
