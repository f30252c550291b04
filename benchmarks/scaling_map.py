"""Which schedules win on which links: bandwidth, latency and number of blocks, and what trouble costs.

``python -m benchmarks.scaling`` has its part in the page made here. Schedules are compared at equal delay of the weights,
and by samples per second alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from benchmarks.reporting import markdown_table
from lowdimfa.services.lab.simulation.names import read_name
from lowdimfa.services.lab.simulation.setting import Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.lab.simulation.trouble import Loss, Trouble, draw_slowdowns, uneven

Links = Callable[[int, float], Setting]
"""Returns blocks that are alike, so many, on links of so many Mbit/s."""

BLOCKS = (4, 16, 64, 256, 1024)
MEGABITS = (25.0, 100.0, 1_000.0, 10_000.0)
LATENCIES = (0.5, 50.0)
SHOWN = ((25.0, 50.0), (100.0, 50.0), (100.0, 0.5), (1_000.0, 0.5), (10_000.0, 0.5))
"""Links in the page's table, in Mbit/s and ms; the picture has all."""


@dataclass(frozen=True)
class Contest:
    """A schedule of this method beside all of backpropagation that is compared with it."""

    title: str
    ours: str
    rivals: tuple[str, ...]


_WAITING, _DELAYED = ("gpipe", "1f1b", "zero-bubble"), ("2bw", "2bw-wide")

CONTESTS = {
    "exact": Contest("no delay, float32", "staleness-0", _WAITING),
    "delayed": Contest("one step of delay, float32", "staleness-1", _DELAYED),
    "int8": Contest(
        "one step of delay, int8", "staleness-1+int8", tuple(f"{name}+int8" for name in _DELAYED)
    ),
    "low-rank": Contest(
        "one step of delay, rivals 100 times fewer bytes, int8 here",
        "staleness-1+int8",
        tuple(f"{name}+x100" for name in _DELAYED),
    ),
}

TROUBLED_BLOCKS, TROUBLED_MEGABITS, SECONDS = 16, 1_000.0, 120.0
SPREAD, SLOW, RECOVERY, CHECKPOINT_EVERY = 0.5, (60.0, 5.0, 3.0), 8.0, 50
LOST = (Loss(0, 30.0), Loss(8, 60.0), Loss(15, 90.0))
TROUBLED = ("1f1b", "zero-bubble", "2bw", "staleness-1")
RESTART = "staleness-1, restart"


def measure_map(links: Links) -> list[dict[str, Any]]:
    """Simulate every contest on every link with every number of blocks."""

    @cache
    def simulated(blocks: int, megabits: float, latency: float, name: str) -> float:
        return simulate(replace(links(blocks, megabits), latency=latency / 1e3), name).samples_per_second

    def rate(blocks: int, megabits: float, latency: float, name: str) -> float:
        found = read_name(name)
        if found.staleness is None:  # all that it sends is compressed, which is the same as a faster link
            return simulated(blocks, megabits * found.fewer, latency, found.base)
        return simulated(blocks, megabits, latency, name)

    rows = []
    for blocks in BLOCKS:
        for megabits in MEGABITS:
            for latency in LATENCIES:
                for key, contest in CONTESTS.items():
                    rates = {name: rate(blocks, megabits, latency, name) for name in contest.rivals}
                    best = max(rates, key=lambda name: rates[name])
                    rows.append(
                        {
                            "contest": key,
                            "blocks": blocks,
                            "megabits": megabits,
                            "latency_ms": latency,
                            "ours": rate(blocks, megabits, latency, contest.ours),
                            "best_rival": best,
                            "rivals": rates,
                        }
                    )
    return rows


def measure_trouble(links: Links) -> dict[str, dict[str, float]]:
    """Return samples per second by what goes wrong and by schedule."""
    calm, count = links(TROUBLED_BLOCKS, TROUBLED_MEGABITS), TROUBLED_BLOCKS
    factors = uneven(count, SPREAD, 0)
    blocks = tuple(
        replace(one, forward=factor * one.forward, update=factor * one.update, step=factor * one.step)
        for one, factor in zip(calm.blocks, factors, strict=True)
    )
    lost = Trouble(SECONDS, lost=LOST, recovery=RECOVERY, checkpoint_every=CHECKPOINT_EVERY)
    cases = {
        "calm": calm,
        "uneven": replace(calm, blocks=blocks),
        "stragglers": replace(calm, trouble=Trouble(SECONDS, draw_slowdowns(count, SECONDS, *SLOW, 0))),
        "losses": replace(calm, trouble=lost),
    }
    found = {
        case: {name: simulate(setting, name).samples_per_second for name in TROUBLED}
        for case, setting in cases.items()
    }
    restarting = replace(calm, trouble=replace(lost, rejoin=False))
    for case, rates in found.items():
        rates[RESTART] = (
            simulate(restarting, "staleness-1").samples_per_second
            if case == "losses"
            else rates["staleness-1"]
        )
    return found


def map_table(rows: list[dict[str, Any]], rate: Callable[[float], str]) -> str:
    """Return who is how much faster, for some links."""
    found = {(row["blocks"], row["megabits"], row["latency_ms"], row["contest"]): row for row in rows}
    cells = []
    for blocks in BLOCKS:
        for megabits, latency in SHOWN:
            line = [f"{blocks:,}", f"{rate(megabits)}, {latency:g} ms"]
            for key in CONTESTS:
                row = found[blocks, megabits, latency, key]
                rival = row["rivals"][row["best_rival"]]
                name = read_name(row["best_rival"]).base
                line.append(f"{_rate(row['ours'])} / {_rate(rival)} {name}: {row['ours'] / rival:.2f}")
            cells.append(line)
    return markdown_table(("blocks", "links", *(contest.title for contest in CONTESTS.values())), cells)


def trouble_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return samples per second, and the share of those where all is well."""
    titles = {
        "calm": "nothing",
        "uneven": f"blocks take 1 to {1 + SPREAD:g} times as long",
        "stragglers": f"each block {SLOW[2]:g} times slower for {SLOW[1]:g} s, every {SLOW[0]:g} s",
        "losses": f"{len(LOST)} blocks are lost, each back after {RECOVERY:g} s",
    }
    names = (*TROUBLED, RESTART)
    rows = [
        (
            titles[case],
            *(f"{found[case][name]:,.0f} ({found[case][name] / found['calm'][name]:.0%})" for name in names),
        )
        for case in titles
    ]
    return markdown_table(("what goes wrong", *names), rows)


def _rate(samples: float) -> str:
    return f"{samples:,.0f}" if samples >= 99.5 else f"{samples:.1f}"
