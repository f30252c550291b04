"""The benchmark of throughput from beginning to end, on the smallest network: 30 s, most of it to start processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEMS = ("lowdimfa-s1", "single-1", "1f1b", "limit")


@pytest.mark.timeout(240)
def test_systems_are_measured_side_by_side() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.throughput",
        "--networks",
        "tiny",
        "--rounds",
        "1",
        "--steps",
        "3",
    ]
    command += ["--systems", ",".join(SYSTEMS), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["not_measured"] == {}
    assert set(found["samples_per_second"]) == set(SYSTEMS)
    assert min(found["samples_per_second"].values()) > 0
    assert found["ratio_vs_1f1b"] > 0 and found["ratio_vs_limit"] > 0
    assert 0 < found["busy_fraction_min"] <= 1
    # 128 activations of 4 bytes forward, and as many back for gradients, but the 10 numbers of the error broadcast.
    assert found["forward_bytes_per_sample"] == {"lowdimfa-s1": 512, "single-1": 0, "1f1b": 512, "limit": 0}
    assert found["backward_bytes_per_sample"] == {"lowdimfa-s1": 40, "single-1": 0, "1f1b": 512, "limit": 0}
    assert 0 < found["transport_cpu_ms_per_microbatch"] < 100
