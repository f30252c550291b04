"""How long a run on Ray takes to its first step, from the command, where no cluster is named.

``python -m benchmarks.start --write`` lets ``lowdimfa train`` begin examples/digits_mlp.yaml, 4 blocks, a number of times
and ends each run after it. Wall time is until the command tells of the first step; processor time is what all of its
processes have taken until then. ``--against PYTHON``, that of another environment such as an older tree's, takes turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reporting import environment, markdown_table, offer_output, put_out

SPECIFICATION = Path(__file__).parent.parent / "examples" / "digits_mlp.yaml"
LENGTH = ("--set", "train.epochs=1", "--set", "train.log_every=1")
COMMAND = "from lowdimfa.services.cli.main import main; main()"


def first_step(python: str) -> dict[str, float]:
    """Let a run begin; return wall and processor seconds until its first step, and how many processes there were.

    Raises
    ------
    RuntimeError
        The run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [str(SPECIFICATION), "--format", "json", "--run-dir", f"{folder}/run", *LENGTH]
        began = time.monotonic()
        with psutil.Popen(
            [python, "-P", "-c", COMMAND, "train", *words], stdout=subprocess.PIPE, text=True, cwd=folder
        ) as command:
            for line in command.stdout:
                if json.loads(line)["event"] == "progress":
                    found = {"seconds": time.monotonic() - began} | _taken(command)
                    break
            command.stdout.read()
        if command.returncode:
            raise RuntimeError(f"the run ended with exit code {command.returncode}")
    return found


def _taken(command: psutil.Popen) -> dict[str, float]:
    processes = [command, *command.children(recursive=True)]
    return {"cpu_seconds": sum(sum(each.cpu_times()[:4]) for each in processes), "processes": len(processes)}


def measure(pythons: Mapping[str, str], runs: int) -> dict[str, Any]:
    """Time runs of each environment, in turns; one of each before them warms the disk's cache."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for _ in range(1 + runs):
        for name, python in pythons.items():
            found[name].append(first_step(python))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    return {
        "benchmark": "start",
        "command": f"python -m benchmarks.start --runs {runs} --write",
        "environment": environment() | {"cores": os.cpu_count()},
        "runs": {name: each[1:] for name, each in found.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the medians, and the range of the wall times, as a table."""
    rows = []
    for name, runs in result["runs"].items():
        wall, cpu, processes = ([run[key] for run in runs] for key in ("seconds", "cpu_seconds", "processes"))
        spread = f"{min(wall):.1f} to {max(wall):.1f}"
        middle = [f"{statistics.median(values):.1f}" for values in (wall, cpu)]
        rows.append((name, *middle, spread, f"{statistics.median(processes):.0f}", str(len(runs))))
    header = ("tree", "seconds", "processor seconds", "seconds, range", "processes", "runs")
    return markdown_table(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show and store what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default %(default)s)")
    parser.add_argument("--against", metavar="PYTHON", help="take turns with this environment's")
    offer_output(parser)
    chosen = parser.parse_args(arguments)
    pythons = {"this": sys.executable} | ({"the other": chosen.against} if chosen.against else {})
    result = measure(pythons, chosen.runs)
    put_out(result, table(result), chosen)


if __name__ == "__main__":
    main()
