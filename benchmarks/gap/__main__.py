"""Run the long grids: ``python -m benchmarks.gap [gap dimension residual leads …] [--rows …] [--seeds N]``.

``gap`` trains every rule with every rate on a row's network, ``dimension`` over ``r`` with one rate, ``residual`` the
error of the hidden state and its controls on networks with a residual stream. Such a row takes hours on one core. Of the
others it takes minutes, with one rate: ``leads`` has what was tried with the error of the hidden state, ``formats`` the
default with activations that travel in fewer bytes, ``layers`` the error at every layer of two blocks beside that at
their ends. Every finished run is kept, as of the
claims: what was stopped goes on where it was. A row that is complete is printed and stored in ``benchmarks/results``,
from where ``python -m benchmarks.claims --page`` takes it. The usual sizes are claims: ``python -m benchmarks.claims
GAP DIMENSION``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.claims.options import add_run_options, known, run_settings
from benchmarks.claims.storing import Places
from benchmarks.gap.grids import GRIDS, Grid
from benchmarks.reporting import environment, write_result
from lowdimfa.errors import InputError
from lowdimfa.network import computing_threads


def main(arguments: Sequence[str] | None = None, places: Places = Places()) -> int:  # noqa: B008 (frozen)
    """Run what the command line asks for, and return the exit code: 2 for input that can't be used."""
    asked = _parser(places).parse_args(arguments)
    try:
        grids = [GRIDS[name] for name in known(asked.grids or GRIDS, GRIDS, "grids")]
        rows = known(asked.rows.split(",") if asked.rows else _ROWS, _ROWS, "--rows")
        if not 0 < asked.work <= 1:
            raise InputError("--work", f"{asked.work:g}", "a part of it, above 0 and at most 1")
        settings = run_settings(asked)
        with computing_threads(asked.threads):
            for row, grid in ((row, grid) for row in rows for grid in grids if row in grid.networks):
                network = grid.networks[row]
                network = network if asked.work == 1 else network.scaled(asked.work)
                result = grid.run(row, network, asked.rules, settings)
                print(f"\n{grid.stored(row)}\n\n{grid.table(row, network, result)}", flush=True)
                if asked.work == 1:
                    _store(grid, row, result, asked, places)
    except InputError as error:
        print(f"benchmarks.gap: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


_ROWS = list(dict.fromkeys(row for grid in GRIDS.values() for row in grid.networks))


def _store(grid: Grid, row: str, result: dict[str, Any], asked: argparse.Namespace, places: Places) -> None:
    command = f"python -m benchmarks.gap {grid.name} --rows {row} --seeds {asked.seeds}"
    if asked.rules:
        command += f" --rules {shlex.join(asked.rules)}"
    about = {"benchmark": grid.stored(row), "command": command, "seeds": asked.seeds}
    whole = about | {"environment": environment(torch.device("cpu"))} | result
    write_result(grid.stored(row), whole, places.results)


def _parser(places: Places) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grids", nargs="*", help=f"some of {', '.join(GRIDS)} (default: all)")
    parser.add_argument("--rows", help=f"networks, some of {','.join(_ROWS)} (default: all)")
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="PATTERN",
        default=[],
        help="only those with such labels, as in '*input, K = 4', and what they are compared with (default: all); a row "
        "is stored with these alone",
    )
    parser.add_argument(
        "--work",
        type=float,
        default=1.0,
        help="part of the samples, for a try that is not stored (default: all)",
    )
    add_run_options(parser, places)
    return parser


if __name__ == "__main__":
    sys.exit(main())
