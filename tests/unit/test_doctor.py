"""`lowdimfa doctor`: what each check says of facts that are given to it, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowdimfa.services.cli.doctor import machine, reading, software
from lowdimfa.services.cli.doctor.command import as_json, as_text
from lowdimfa.services.cli.doctor.finding import Finding, State, problem
from lowdimfa.services.cli.doctor.machine import Disk
from lowdimfa.services.cli.doctor.nodes import Node, node
from lowdimfa.services.cli.doctor.software import Loaded, Package

GIB = 1 << 30
GPU = "NVIDIA H200 (driver 590.1)"
OF_PROCESSORS, OF_CUDA = Loaded({}, "2.13.0+cpu"), Loaded({}, "2.13.0", "CUDA 13.0")
HERE = {"python": "3.11.7", "lowdimfa": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "numpy": "2.4.6"}
NODE = Node("192.0.2.3", {"CPU": 4, "GPU": 1, "memory": 8 * GIB}, HERE, clock=0.02, doubt=0.001)
THERE, LACKING, OLD = (
    Package("a>=1", "1.2", True),
    Package("b>=2", None, False),
    Package("c>=3", "2.9", False),
)
DISK = Disk(Path("/tmp"), 100 * GIB, 50 * GIB)
OK, WARNING, PROBLEM = State.ok, State.warning, State.problem

CHECKS = [
    (software.python((3, 11, 0)), OK, "3.11.0", ""),
    (software.python((3, 13, 9)), OK, "3.13.9", ""),
    (software.python((3, 10, 2)), PROBLEM, "3.10.2", "3.11 to 3.13"),
    (software.python((3, 14, 0)), WARNING, "3.14.0", "tested"),
    (software.packages([THERE]), OK, "all 1", ""),
    (software.packages([THERE, LACKING, OLD]), PROBLEM, "b>=2 (not installed), c>=3 (2.9)", "install 'b>=2' 'c>=3'"),
    (software.extra("hf", [THERE]), OK, "installed", ""),
    (software.extra("hf", [LACKING]), OK, "not installed (pip install 'lowdimfa[hf]')", ""),
    (software.extra("hf", [THERE, OLD, LACKING]), WARNING, "c>=3 (2.9)", "if you use it"),
    (software.libraries(OF_CUDA), OK, "built for CUDA 13.0", ""),
    (software.libraries(Loaded({"torch": "ImportError: libcudart"})), PROBLEM, "ImportError: libcudart", "anew"),
    (software.gpus(None, OF_PROCESSORS), OK, "none", ""),
    (software.gpus([GPU, GPU], OF_PROCESSORS), WARNING, f"2 × {GPU}, and torch sees none", "Install a build of torch"),
    (software.gpus([GPU], OF_CUDA), WARNING, "torch sees none", "CUDA_VISIBLE_DEVICES"),
    (software.gpus([GPU], replace(OF_CUDA, devices=["NVIDIA H200"])), OK, "NVIDIA H200", ""),
    (machine.shared_memory(7 * GIB, 20 * GIB), OK, "7.0 GiB free", ""),
    (machine.shared_memory(64 << 20, 20 * GIB), WARNING, "64.0 MiB free in /dev/shm; Ray wants 6.0 GiB", "--shm-size=6g"),
    (machine.shared_memory(None, 400 * GIB), WARNING, "no /dev/shm; Ray wants 9.3 GiB", "--shm-size=10g"),
    (machine.open_files(8192), OK, "8,192", ""),
    (machine.open_files(1024), WARNING, "1,024", "8192"),
    (machine.threads(None, ""), OK, "no limit", ""),
    (machine.threads(1000, "ulimit -u"), WARNING, "1,000 more may start (ulimit -u)", "Raise"),
    (machine.threads(100, "ulimit -u"), PROBLEM, "100 more", "Raise"),
    (machine.memory(8 * GIB), OK, "8.0 GiB", ""),
    (machine.memory(2 * GIB), WARNING, "2.0 GiB", "fewer blocks"),
    (machine.memory(GIB // 2), PROBLEM, "512.0 MiB", "fewer blocks"),
    (machine.storage(DISK), OK, "50.0 GiB free in /tmp", ""),
    (machine.storage(replace(DISK, free=GIB // 2)), WARNING, "512.0 MiB", "run.storage"),
    (machine.storage(replace(DISK, free=1 << 20)), PROBLEM, "1.0 MiB", "run.storage"),
    (machine.storage(Disk(Path("/x"), error="Permission denied")), PROBLEM, "/x can't be written: Perm", "run.storage"),
    (machine.temporary(DISK), OK, "50.0 GiB", ""),
    (machine.temporary(replace(DISK, free=4 * GIB)), WARNING, "over 95% full", "Make room"),
    (machine.temporary(replace(DISK, path=Path("/tmp", "x" * 60))), PROBLEM, "too long for Ray's sockets", "TMPDIR"),
    (machine.temporary(Disk(Path("/x"), error="Read-only")), PROBLEM, "/x can't be written: Read-only", "TMPDIR"),
    (machine.cache(DISK), OK, "50.0 GiB", ""),
    (machine.cache(Disk(Path("/x"), error="Permission denied")), WARNING, "/x can't be written", "LOWDIMFA_DATA"),
    (machine.listening("loopback", "127.0.0.1", ""), OK, "127.0.0.1", ""),
    (machine.listening("own address", "192.0.2.2", "timed out"), PROBLEM, "192.0.2.2: timed out", "firewall"),
    (machine.port(50051, "--port", ""), OK, "free", ""),
    (machine.port(50051, "--port", "address already in use"), WARNING, "already in use", "another --port"),
    (machine.clock(machine.BUILT + 1, 1.0, 1.0), OK, "2026-01-01 00:00:01 UTC", ""),
    (machine.clock(0.0, 1.0, 2.0), PROBLEM, "1970-01-01", "certificates"),
    (machine.clock(machine.BUILT + 1, 2.0, 1.0), PROBLEM, "backwards", "clock source"),
    (node(NODE, HERE), OK, "4 CPUs, 1 GPUs, 8.0 GiB memory; same versions; clock +0.020 s (± 0.001 s)", ""),
    (node(replace(NODE, clock=-3.0), HERE), WARNING, "clock -3.000 s", "NTP"),
    (node(replace(NODE, clock=3.0, doubt=2.5), HERE), OK, "clock +3.000 s (± 2.500 s)", ""),
    (node(replace(NODE, clock=4000.0), HERE), PROBLEM, "clock +4000.000 s", "NTP"),
    (node(replace(NODE, versions=HERE | {"torch": "2.12.0"}), HERE), WARNING, "torch 2.12.0 (here 2.13.0)", "same"),
    (node(replace(NODE, versions=HERE | {"lowdimfa": "0.2.0"}), HERE), PROBLEM, "lowdimfa 0.2.0 (here 0.1.0)", "same"),
    (node(replace(NODE, versions=HERE | {"torch": None}), HERE), PROBLEM, "torch not installed", "same"),
    (node(Node("192.0.2.3", {}, {}, error="no answer"), HERE), PROBLEM, "no answer", "Ray's logs"),
]  # fmt: skip


@pytest.mark.parametrize(("finding", "state", "found", "todo"), CHECKS, ids=lambda each: str(each)[:40])
def test_each_check(finding: Finding, state: State, found: str, todo: str) -> None:
    assert finding.state is state
    assert found in finding.found
    assert todo in finding.todo and bool(finding.todo) == (state is not OK)


@pytest.mark.parametrize(
    ("names", "returned"),
    [
        (("memory.max", "memory.current"), "inactive_file"),
        (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
@pytest.mark.parametrize(
    ("limit", "free", "left"), [(8, 128, 7.5), (8, 3, 3), (2**40, 128, 128), (0.25, 9, 0)]
)
def test_memory_is_what_is_left_of_the_container_and_of_its_host(
    names: tuple[str, str],
    returned: str,
    limit: float,
    free: float,
    left: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What others use on the host is none of the container's limit."""
    (tmp_path / names[0]).write_text(f"{int(limit * GIB)}\n")
    (tmp_path / names[1]).write_text(f"{GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\n{returned} {GIB // 2}\n")
    monkeypatch.setattr(reading, "_MEMORY_LIMITS", ((tmp_path / names[0], names[1], returned),))
    host = SimpleNamespace(total=256 * GIB, available=int(free * GIB))
    monkeypatch.setattr(reading.psutil, "virtual_memory", lambda: host)
    assert reading.available_memory() == left * GIB
    (tmp_path / names[0]).write_text("max\n")
    assert reading.available_memory() == free * GIB


def test_what_this_machine_is_like_can_be_read() -> None:
    assert reading.available_memory() > 0
    assert reading.most_open_files() > 0
    assert reading.listen("127.0.0.1") == "" and reading.listen(reading.own_address()) == ""
    needed, extras = software.read_packages()
    assert {"torch", "ray"} <= {package.wanted.split(">")[0] for package in needed}
    assert "hf" in extras and not {"dev", "fuzz"} & set(extras)
    assert software.packages(needed).state is OK  # the tests run with what is needed


def test_a_port_that_is_taken_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        assert "already in use" in reading.listen("127.0.0.1", number, connect=False)
    (tmp_path / "file").touch()
    assert reading.disk(tmp_path / "file" / "below").error
    assert not reading.disk(tmp_path / "is" / "made" / "later").error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_library_that_ends_the_process_says() -> None:
    def child(script: str) -> software.Loaded:
        return software.end_loading(software.begin_loading(script), 60.0)

    assert child("import os; os.abort()").errors == {"torch": "ended with exit code -6"}
    assert child("import sys; sys.exit('no such processor')").errors == {"torch": "no such processor"}
    latin = "import sys; sys.stderr.buffer.write(b'caf\\xe9 lacks'); sys.exit(1)"
    assert child(latin).errors == {"torch": "caf\ufffd lacks"}
    assert child('print(\'a word\'); print(\'{"errors": {}, "torch": "2.6.0"}\')') == Loaded({}, "2.6.0")


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    finding = problem("temporary folder", "a long story " * 10, "Set TMPDIR.")
    first, *rest = as_text(finding).splitlines()
    assert first.startswith("problem  temporary folder  a long story")
    assert all(len(line) <= 80 for line in (first, *rest))
    assert (
        all(line.startswith(" " * 27 + line.strip()) for line in rest) and rest[-1].strip() == "Set TMPDIR."
    )
    assert (
        as_text(problem("node 2001:db8::1:2:3:4:5:6", "no answer", "x"))
        .splitlines()[0]
        .endswith("  no answer")
    )
    path = "/a/path/without/blanks" * 4
    assert f"temporary folder  {path}" in as_text(problem("temporary folder", path, "Set TMPDIR."))
    assert json.loads(as_json(finding))["state"] == "problem"


def test_folders_that_nobody_can_find_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert machine.storage(reading.disk(Path("runs"))).state is PROBLEM

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    found = machine.temporary(reading.temporary())
    assert (
        found.state is PROBLEM and "No usable temporary directory" in found.found and "TMPDIR" in found.todo
    )
