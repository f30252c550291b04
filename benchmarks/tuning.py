"""How far the default settings are behind the best that ``lowdimfa plan --tune`` finds, on the benchmarks' networks.

    python -m benchmarks.tuning --networks mlp,cnn --blocks 2,4 --minutes 5 --write

For each network, number of blocks and staleness the command is run on this machine, from one micro-batch, which is
the default; ``--write`` stores its results. *Default of best* is the rate of the default over that of the setting that
was chosen, measured in turns, 1 where the default stayed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.reporting import environment, markdown_table, offer_output, put_out
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.process import ROOT
from lowdimfa.services.spec.dialect import write_yaml

_RUN = "from lowdimfa.services.cli.main import main; main()"


def measure(network: str, blocks: int, staleness: int, options: list[str]) -> dict[str, Any]:
    """Return what the command finds."""
    plain = NETWORKS[network].specification(blocks, staleness, train={"microbatches": 1})
    with tempfile.TemporaryDirectory(prefix="tuning-") as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(write_yaml(plain), encoding="utf-8")
        command = [sys.executable, "-c", _RUN, "plan", str(spec), "--tune"]
        place = ["--format", "json", "--set", f"run.storage={folder}"]
        with_own = os.environ | {"PYTHONPATH": str(ROOT)}  # where the networks' factories are
        done = subprocess.run([*command, *place, *options], env=with_own, stdout=subprocess.PIPE, check=True)
        return {"network": network, "blocks": blocks, "staleness": staleness} | json.loads(done.stdout)


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """Return a measurement as a row of the table."""
    default = next(one for one in found["settings"] if not one["changes"])
    words = ", ".join(f"`{key}: {value}`" for key, value in found["chosen"].items())
    behind = 1 / found["ratio"] if found["chosen"] else 1.0
    noise = "-" if found["noise"] is None else f"{found['noise']:.2f}"
    return (
        f"{found['network']}, {found['blocks']} blocks",
        str(found["staleness"]),
        f"{default['samples_per_second']:,.0f}",
        words or "as it is",
        f"{behind:.2f}",
        noise,
    )


def _several(text: str) -> list[str]:
    return text.split(",")


HEADER = ("network", "staleness", "samples/s", "chosen", "default of best", "noise")


def table(result: Mapping[str, Any]) -> str:
    """Return what was found as a table."""
    return markdown_table(HEADER, [row(one) for one in result["found"]])


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default="mlp,cnn", help="some of the benchmarks' (%(default)s)")
    parser.add_argument("--blocks", default="2", help="numbers of blocks, such as 2,4 (%(default)s)")
    parser.add_argument("--staleness", default="0,1", help="each with defaults of its own (%(default)s)")
    parser.add_argument("--minutes", default="5", help="for each (%(default)s)")
    parser.add_argument("--allow", default="microbatches,replicas", help="as for the command (%(default)s)")
    offer_output(parser)
    asked = parser.parse_args()
    options = ["--minutes", asked.minutes, *(["--allow", asked.allow] if asked.allow else [])]
    found = []
    for network, blocks, staleness in product(
        *map(_several, (asked.networks, asked.blocks, asked.staleness))
    ):
        found.append(measure(network, int(blocks), int(staleness), options))
        print(" | ".join(row(found[-1])), file=sys.stderr, flush=True)
    result = {"benchmark": "tuning", "environment": environment(), "found": found}
    put_out(result, table(result), asked)


if __name__ == "__main__":
    main()
