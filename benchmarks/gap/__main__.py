"""Run the long grids: ``python -m benchmarks.gap [gap dimension residual formats] [--rows …] [--rules N] [--seeds N]``.

``gap`` trains every rule with every rate on a row's network, ``dimension`` over ``r`` with one rate, ``residual`` the
error of the hidden state and its controls on networks with a residual stream, ``formats`` the default with activations
that travel in fewer bytes, with one rate. Such a row takes hours on one core, of ``formats`` minutes. Every
finished run is kept in ``runs/claims``: what was stopped goes on where it was. A row that is complete is stored in
``benchmarks/results`` and printed. The usual sizes are claims: ``python -m benchmarks.claims GAP DIMENSION``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.claims.cache import RunCache
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.storing import Places
from benchmarks.gap import closing, dimension, formats, residual
from benchmarks.gap.long import ROWS
from benchmarks.gap.networks import Network
from benchmarks.reporting import environment, write_result
from lowdimfa.errors import InputError
from lowdimfa.network import computing_threads


def main(arguments: Sequence[str] | None = None, places: Places = Places()) -> int:  # noqa: B008 (frozen)
    """Run what the command line asks for, and return the exit code: 2 for input that can't be used."""
    asked = _parser().parse_args(arguments)
    try:
        grids = [_GRIDS[name] for name in _known(asked.grids or _GRIDS, _GRIDS, "grids")]
        rows = _known(asked.rows.split(",") if asked.rows else _ROWS, _ROWS, "--rows")
        if min(asked.seeds, asked.threads, asked.rules) < 1 or not 0 < asked.work <= 1:
            raise InputError(
                "--seeds, --threads, --rules, --work", "0 or less", "at least 1; of work a part of it"
            )
        settings = RunSettings(asked.seeds, threads=asked.threads, cache=RunCache(places.runs, asked.fresh))
        with computing_threads(asked.threads):
            for row, grid in ((row, grid) for row in rows for grid in grids if row in grid.networks):
                network = grid.networks[row]
                network = network if asked.work == 1 else network.scaled(asked.work)
                result, table = grid.run(row, network, asked.rules, settings)
                _store(f"long-{grid.name}-{row}", result, table, asked, places)
    except InputError as error:
        print(f"benchmarks.gap: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


@dataclass(frozen=True)
class Grid:
    """What is run on some networks: ``run`` gets a row, its network, the most rules, and the settings."""

    name: str
    networks: dict[str, Network]
    run: Callable[[str, Network, int, RunSettings], tuple[dict[str, Any], str]]


def _gap(row: str, network: Network, most: int, settings: RunSettings) -> tuple[dict[str, Any], str]:
    result = closing.run_on([network], settings, closing.RULES[:most])
    return result, closing.network_table(result, network)


def _dimension(row: str, network: Network, most: int, settings: RunSettings) -> tuple[dict[str, Any], str]:
    sweep = replace(dimension.SWEEP, networks=(network,), lines=dimension.SWEEP.lines[:most])
    result = sweep.run(settings)
    return result, sweep.tables(result)


def _residual(row: str, network: Network, most: int, settings: RunSettings) -> tuple[dict[str, Any], str]:
    result = closing.run_on([network], settings, residual.ROWS[row][1][:most])
    return result, closing.network_table(result, network)


_GRIDS = {
    grid.name: grid
    for grid in (
        Grid("gap", ROWS, _gap),
        Grid("dimension", ROWS, _dimension),
        Grid("residual", {row: network for row, (network, _) in residual.ROWS.items()}, _residual),
        Grid("formats", {row: own.network for row, own in formats.ROWS.items()}, formats.run),
    )
}
_ROWS = list(dict.fromkeys(row for grid in _GRIDS.values() for row in grid.networks))


def _store(name: str, result: dict[str, Any], table: str, asked: argparse.Namespace, places: Places) -> None:
    about = {"benchmark": name, "seeds": asked.seeds, "work": asked.work, "rules": asked.rules}
    write_result(name, about | {"environment": environment(torch.device("cpu"))} | result, places.results)
    print(f"\n{name}\n\n{table}", flush=True)


def _known(asked: Iterable[str], names: Iterable[str], what: str) -> list[str]:
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
    parser.add_argument("grids", nargs="*", help=f"some of {', '.join(_GRIDS)} (default: all)")
    parser.add_argument("--rows", help=f"networks, some of {','.join(_ROWS)} (default: all)")
    parser.add_argument(
        "--rules", type=int, default=sys.maxsize, help="only the first so many (default: all)"
    )
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
