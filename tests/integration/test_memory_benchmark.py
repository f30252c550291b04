"""The benchmark of memory on a small Llama, in actors: no process takes more than its block needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]


def test_no_process_takes_more_than_its_block_needs() -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "benchmarks.memory", "--size", "60M", "--json"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found["blocks"]) == 4
    assert all(0 < block["peak"] <= block["allowed"] for block in found["blocks"])
