"""Run the long grids: ``python -m benchmarks.gap [gap dimension] [--rows mlp,cnn,cifar,vit] [--seeds N]``.

``gap`` trains every rule with every rate on a row's network, ``dimension`` over ``r`` with one rate. Such a row takes
hours on one core. Every finished run is kept in ``runs/claims``: what was stopped goes on where it was. A row that is
complete is stored in ``benchmarks/results`` and printed. The usual sizes are claims: ``python -m benchmarks.claims GAP
DIMENSION``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.claims.cache import RunCache
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.storing import Places
from benchmarks.gap import closing, dimension
from benchmarks.gap.long import ROWS
from benchmarks.gap.networks import Network
from benchmarks.reporting import environment, write_result
from lowdimfa.errors import InputError
from lowdimfa.network import computing_threads

GRIDS = ("gap", "dimension")


def main(arguments: Sequence[str] | None = None, places: Places = Places()) -> int:  # noqa: B008 (frozen)
    """Run what the command line asks for, and return the exit code: 2 for input that can't be used."""
    asked = _parser().parse_args(arguments)
    try:
        grids, rows = (
            _known(asked.grids or GRIDS, GRIDS, "grids"),
            _known(asked.rows.split(","), ROWS, "--rows"),
        )
        if asked.seeds < 1 or asked.threads < 1 or not 0 < asked.work <= 1:
            raise InputError("--seeds, --threads, --work", "0 or less", "at least 1; of work a part of it")
        settings = RunSettings(asked.seeds, threads=asked.threads, cache=RunCache(places.runs, asked.fresh))
        with computing_threads(asked.threads):
            for row in rows:
                network = ROWS[row] if asked.work == 1 else ROWS[row].scaled(asked.work)
                for grid in grids:
                    _store(f"long-{grid}-{row}", *_GRIDS[grid](network, settings), asked, places)
    except InputError as error:
        print(f"benchmarks.gap: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


def _gap(network: Network, settings: RunSettings) -> tuple[dict[str, Any], str]:
    result = closing.run_on([network], settings)
    return result, closing.network_table(result, network)


def _dimension(network: Network, settings: RunSettings) -> tuple[dict[str, Any], str]:
    sweep = replace(dimension.SWEEP, networks=(network,))
    result = sweep.run(settings)
    return result, sweep.tables(result)


_GRIDS = {"gap": _gap, "dimension": _dimension}


def _store(name: str, result: dict[str, Any], table: str, asked: argparse.Namespace, places: Places) -> None:
    about = {"benchmark": name, "seeds": asked.seeds, "work": asked.work}
    write_result(name, about | {"environment": environment(torch.device("cpu"))} | result, places.results)
    print(f"\n{name}\n\n{table}", flush=True)


def _known(asked: Sequence[str], names: Sequence[str] | dict[str, Network], what: str) -> list[str]:
    for name in asked:
        if name not in names:
            raise InputError(what, repr(name), f"some of {', '.join(names)}")
    return [name for name in names if name in asked]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grids", nargs="*", help="gap, dimension (default: both)")
    parser.add_argument("--rows", default=",".join(ROWS), help="networks (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each configuration (default %(default)s)"
    )
    parser.add_argument(
        "--work", type=float, default=1.0, help="part of the samples, for a try (default: all)"
    )
    parser.add_argument("--fresh", action="store_true", help="make runs again that were made already")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
