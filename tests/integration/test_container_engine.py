"""``.ci/docker-engine down`` ends the engine that it started, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "docker-engine"

pytestmark = pytest.mark.skipif(
    not (SCRIPT.exists() and Path("/proc/self/cmdline").exists()),
    reason="the script isn't here, or isn't for here",
)


@contextmanager
def running(*named: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that waits, with a command line that begins and ends so."""
    first, *rest = named
    waiting = ["-c", "import sys; sys.stdin.read()"]
    process = subprocess.Popen([first, *waiting, *rest], executable=sys.executable, stdin=subprocess.PIPE)
    reaped = threading.Thread(target=process.wait)  # else it would seem to be there when it has ended
    reaped.start()
    try:
        yield process
    finally:
        process.kill()
        reaped.join()
        assert process.stdin is not None
        process.stdin.close()


def down(home: Path) -> str:
    done = subprocess.run(
        ["bash", SCRIPT, "down"],
        env=os.environ | {"LOWDIMFA_ENGINE": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_only_the_engine_that_was_started_is_ended(tmp_path: Path) -> None:
    assert "not running" in down(tmp_path)
    data, file = ("--data-root", str(tmp_path / "data")), tmp_path / "dockerd.pid"
    for command in (("sleep", *data), ("dockerd", *data[:1], str(tmp_path / "data-of-another"))):
        with running(*command) as stranger:
            file.write_text(str(stranger.pid))
            assert "not running" in down(tmp_path)
            assert stranger.poll() is None
    file.write_text(str(stranger.pid))
    assert "not running" in down(tmp_path)
    with running("/usr/bin/dockerd", *data) as engine:
        file.write_text(str(engine.pid))
        assert "ended" in down(tmp_path)
        assert engine.poll() is not None
