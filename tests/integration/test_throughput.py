"""The benchmark of throughput from beginning to end, on the smallest network: a minute, most of it to start processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.throughput", "--networks", "tiny"]
SYSTEMS = ("lowdimfa-s1", "lowdimfa-s1+int8", "single-1", "1f1b", "2bw+int8", "limit")


@pytest.mark.timeout(600)
def test_systems_are_measured_side_by_side() -> None:
    command = [*COMMAND, "--rounds", "1", "--steps", "3", "--systems", ",".join(SYSTEMS), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["not_measured"] == {}
    assert set(found["samples_per_second"]) == set(SYSTEMS)
    assert min(found["samples_per_second"].values()) > 0
    assert found["ratio_vs_1f1b"] > 0 and found["ratio_vs_limit"] > 0
    assert 0 < found["busy_fraction_min"] <= 1
    # 128 activations of 4 bytes forward, and as many back for gradients, but the 10 numbers of the error broadcast. As
    # integers they have a byte each, and 3 for their scale.
    forward = {
        "lowdimfa-s1": 512,
        "lowdimfa-s1+int8": 131,
        "single-1": 0,
        "1f1b": 512,
        "2bw+int8": 131,
        "limit": 0,
    }
    assert found["forward_bytes_per_sample"] == forward
    backward = {
        "lowdimfa-s1": 40,
        "lowdimfa-s1+int8": 40,
        "single-1": 0,
        "1f1b": 512,
        "2bw+int8": 131,
        "limit": 0,
    }
    assert found["backward_bytes_per_sample"] == backward
    assert found["ratio_vs_delayed_int8"] > 0
    assert 0 < found["transport_cpu_ms_per_microbatch"] < 100


@pytest.mark.timeout(600)
def test_speed_within_a_limit_of_memory_is_measured_with_every_cut() -> None:
    command = [sys.executable, "-m", "benchmarks.memory_limit", "--network", "tiny", "--batch-size", "64"]
    short = ["--parts", "2,8", "--rounds", "1", "--steps", "1", "--limits-mib", "1,4000", "--json"]
    done = subprocess.run([*command, *short], cwd=ROOT, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    both = ["lowdimfa-s0", "lowdimfa-s1", "1f1b", "1f1b-recompute", "zero-bubble-h1", "single-2"]
    both.append("single-2-recompute")
    narrow = ["lowdimfa-s0, window 4", "lowdimfa-s1, window 4"]
    assert [(row["system"], row["parts"]) for row in rows] == [
        *((name, 2) for name in both),
        *((name, 8) for name in [*both, *narrow]),
    ]
    assert all(row["samples_per_second"] > 0 and row["peak_bytes"] > 1e8 for row in rows)
    assert "–" in done.stdout  # nothing is within 1 MiB


@pytest.mark.timeout(300)
def test_what_was_started_ends_with_a_measurement_that_is_ended() -> None:
    command = [*COMMAND, "--rounds", "100000", "--steps", "1", "--systems", "single-1,1f1b,limit"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as measuring:
        assert measuring.stdout is not None
        assert any(line.startswith("measuring 3 systems") for line in measuring.stdout)
        started = psutil.Process(measuring.pid).children(recursive=True)
        assert len(started) == 5
        measuring.terminate()
        assert measuring.wait(200) == 128 + signal.SIGTERM
        assert not [process for process in started if process.is_running()]
