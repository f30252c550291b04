"""The grids of long runs: what each trains on its networks, and the tables of what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Result, RunSettings
from benchmarks.claims.options import picked
from benchmarks.claims.storing import read_json
from benchmarks.gap import closing, dimension, formats, layers, leads, residual
from benchmarks.gap.long import ROWS
from benchmarks.gap.networks import Network
from benchmarks.gap.rules import READOUT, Rule, by_muon, label_of
from benchmarks.gap.sweeps import Sweep


@dataclass(frozen=True)
class Grid:
    """What is run on some networks.

    Attributes
    ----------
    name
        In the command.
    networks
        By the name of their row.
    run
        Gets a row, its network, patterns of the labels of rules (none: all), and the settings; returns what is stored.
    table
        Gets a row, its network, and what is stored.
    """

    name: str
    networks: dict[str, Network]
    run: Callable[[str, Network, Sequence[str], RunSettings], dict[str, Any]]
    table: Callable[[str, Network, Result], str]

    def stored(self, row: str) -> str:
        """Return the name under which a row's result is stored."""
        return f"long-{self.name}-{row}"


def stored_tables(results: Path) -> Iterator[tuple[str, Result, str]]:
    """Yield name, result and table of all rows that have a stored result."""
    for grid in GRIDS.values():
        for row, network in grid.networks.items():
            path = results / f"{grid.stored(row)}.json"
            if path.exists():
                result = read_json(path)
                yield grid.stored(row), result, grid.table(row, network, result)


def missing_rows(results: Path) -> dict[str, list[str]]:
    """Return by grid the rows that have no stored result."""
    found = {
        grid.name: [row for row in grid.networks if not (results / f"{grid.stored(row)}.json").exists()]
        for grid in GRIDS.values()
    }
    return {name: rows for name, rows in found.items() if rows}


def gap_rows(results: Path, usual: Result | None) -> list[tuple[Network, Result]]:
    """Return each network of the gap with the result that is of most work: its long row's, or the usual one."""
    grid, found = GRIDS["gap"], []
    for row, network in closing.NETWORKS.items():
        path = results / f"{grid.stored(row)}.json"
        if path.exists():
            found.append((grid.networks[row], read_json(path)))
        elif usual is not None and network.label in usual["summary"]:
            found.append((network, usual))
    return found


def _closing(rules_of: Callable[[str], tuple[Rule, ...]]) -> dict[str, Any]:
    def run(row: str, network: Network, patterns: Sequence[str], settings: RunSettings) -> dict[str, Any]:
        chosen = picked(rules_of(row), patterns, label_of)
        return closing.run_on([network], settings, closing.with_references(rules_of(row), chosen))

    def table(row: str, network: Network, result: Result) -> str:
        return closing.network_table(result, network, rules_of(row))

    return {"run": run, "table": table}


def _gap_rules(network: Network) -> tuple[Rule, ...]:
    """Return the rules of the gap, whose default has the network's target by either optimiser."""
    defaults = (READOUT.label, by_muon(READOUT).label)
    return tuple(
        replace(one, target=network.target) if one.label in defaults else one for one in closing.RULES
    )


def _swept(network: Network, patterns: Sequence[str] = ()) -> Sweep:
    lines = picked(dimension.SWEEP.lines, patterns, itemgetter(0))
    return replace(dimension.SWEEP, networks=(network,), lines=tuple(lines))


def _at_one_rate(rules_of: Callable[[str], tuple[Rule, ...]]) -> dict[str, Any]:
    def run(row: str, network: Network, patterns: Sequence[str], settings: RunSettings) -> dict[str, Any]:
        chosen = picked(rules_of(row), patterns, label_of)
        return closing.run_at_one_rate(network, closing.with_references(rules_of(row), chosen), settings)

    return {"run": run, "table": lambda row, network, result: closing.network_table(result, network)}


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("gap", ROWS, **_closing(lambda row: _gap_rules(ROWS[row]))),
        Grid(
            "dimension",
            ROWS,
            run=lambda row, network, patterns, settings: _swept(network, patterns).run(settings),
            table=lambda row, network, result: _swept(network).tables(result),
        ),
        Grid(
            "residual",
            {row: network for row, (network, _) in residual.ROWS.items()},
            **_closing(lambda row: residual.ROWS[row][1]),
        ),
        Grid(
            "leads",
            {row: network for row, (network, _) in leads.ROWS.items()},
            **_at_one_rate(lambda row: leads.ROWS[row][1]),
        ),
        Grid("formats", {row: own.network for row, own in formats.ROWS.items()}, formats.run, formats.table),
        Grid("layers", layers.ROWS, **_at_one_rate(lambda row: layers.RULES)),
    )
}
