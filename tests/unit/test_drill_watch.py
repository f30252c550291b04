"""What a drill sees of processes: what grows, what stays behind; and how it kills a trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lowdimfa.services.lab.drill import watch as watching
from lowdimfa.services.lab.drill.growth import Growth, growth
from lowdimfa.services.lab.drill.round import TrainerKiller
from lowdimfa.services.lab.drill.watch import ProcessWatch, Sample, Watched, files_left

MIB = 2**20


def watched(values: Callable[[float], tuple[int, int, int]], seconds: int = 120) -> Watched:
    samples = [Sample(float(second), *values(second)) for second in range(seconds)]
    return Watched("trainer", psutil.Process(), samples)


SPANS = [(float(begin), begin + 5.0) for begin in range(10, 100, 20)]


def grown(values: Callable[[float], tuple[int, int, int]]) -> Growth:
    found = growth(watched(values), SPANS)
    assert found is not None and found.recoveries == 5
    return found


def test_what_stays_as_it_is_is_no_leak() -> None:
    assert grown(lambda second: (30, 50, 400 * MIB)).leaks == []
    # What is taken at the beginning, or during a recovery, is given back.
    assert grown(lambda t: (30 + 40 * (t < 15 or t % 20 in range(10, 16)), 50, 400 * MIB)).leaks == []
    assert grown(lambda second: (30 + second % 3, 50 + second % 4, (400 + second % 20) * MIB)).leaks == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda t: (30 + t // 10, 50, 400 * MIB), "threads of trainer"),
        (lambda t: (30, 50 + t // 5, 400 * MIB), "descriptors of trainer"),
        (lambda t: (30, 50, (400 + 3 * t) * MIB), "memory of trainer"),
    ],
)
def test_what_grows_from_recovery_to_recovery_is_a_leak(
    values: Callable[[float], tuple[int, int, int]], words: str
) -> None:
    (leak,) = grown(values).leaks
    assert leak.startswith(words) and leak.endswith("over 5 recoveries")


def test_a_short_life_is_not_judged() -> None:
    assert growth(watched(lambda t: (t, t, t)), SPANS[:2]) is None
    assert growth(Watched("block 0", psutil.Process()), SPANS) is None


def test_processes_and_ports_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Property: what a process of the run holds is left until it ends, and nothing is after that."""
    monkeypatch.setattr(watching, "PERIOD_SECONDS", 0.02)
    monkeypatch.setattr(watching, "RAY_TITLE", sys.executable)
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with ProcessWatch(descendants=True) as watch:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdin is not None
        port = int(process.stdout.readline())
        watch.saw({"event": "started", "pids": {"trainer": process.pid, "blocks": [2**22 + 1]}})
        while not (watch.watched[0].samples and port in watch._ports):
            assert process.poll() is None
    assert watch.elsewhere == {2**22 + 1}
    assert watch.most_processes == 1
    sample = watch.watched[0].samples[0]
    assert sample.threads >= 1 and sample.descriptors >= 4 and sample.memory > MIB
    first, second = watch.left(0)
    assert first.startswith(f"process {process.pid} (") and second == f"port {port} (process {process.pid})"
    process.stdin.close()
    process.wait(20)
    process.stdout.close()
    assert watch.left(20) == []


def test_files_that_stay_are_found(tmp_path: Path) -> None:
    run_dir = tmp_path / "round-1"
    (run_dir / "checkpoints" / "step-00000010").mkdir(parents=True)
    (run_dir / "checkpoints" / "step-00000010" / "manifest.json").touch()
    assert files_left(run_dir) == []
    (run_dir / "checkpoints" / "step-00000020").mkdir()
    (run_dir / "result.json.partial").touch()
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "round-1.json").touch()
    assert [Path(path).name for path in files_left(run_dir)] == [
        "step-00000020",
        "result.json.partial",
        "round-1.json",
    ]


def test_the_trainer_is_killed_once_for_each_step() -> None:
    killer = TrainerKiller([20, 30])
    killed = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        ) as process:
            killer.saw({"event": "progress", "step": 50})  # of nobody that is known
            killer.saw({"event": "started", "pids": {"trainer": process.pid}})
            killer.saw({"event": "progress", "step": 10})
            assert process.poll() is None
            killer.saw({"event": "progress", "step": 40})
            killed.append(process.wait(20) if len(killer.kills) > len(killed) else None)
    assert killed == [-9, -9, None]
    killer.saw({"event": "started", "pids": {"trainer": os.getpid()}})
    killer.saw({"event": "progress", "step": 99})
    assert len(killer.kills) == 2
