"""Measures all systems side by side: short turns, each system once per round, in changing order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reporting import environment
from benchmarks.throughput.accuracy import time_to_target, usual_competitors
from benchmarks.throughput.figures import Round, merge, order_of, summary
from benchmarks.throughput.networks import NETWORKS, Network
from benchmarks.throughput.places import place_for
from benchmarks.throughput.process import Team, WorkerError
from benchmarks.throughput.registry import LIMIT
from benchmarks.throughput.systems import OURS, System, start, stop, usual_names
from lowdimfa.errors import InputError

TURN_SECONDS = 600.0
MATMUL_ROWS = (64, 256)
MATMUL_SECONDS = 0.5
PROCESS_BYTES = 300e6
"""Memory that a process of a system takes for itself, at least."""
NODE_BYTES = 400e6
"""Memory that a host's Ray takes for itself."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a measurement goes.

    Attributes
    ----------
    rounds
        Turns of each system that count; a shorter one before them doesn't.
    lead, steps
        Of a turn: steps to warm up again, and steps that are timed.
    mbit
        Limit of each link, or None.
    systems
        Names of those to measure; empty for the usual ones.
    accuracy, perplexity
        Test score to which some are trained in the end, of networks that have that score, or None.
    latency_ms
        How much longer anything takes from one host to another.
    overrides
        Settings ``a.b=value`` on top of this runtime's specification.
    """

    rounds: int = 7
    lead: int = 2
    steps: int = 8
    mbit: int | None = None
    systems: tuple[str, ...] = ()
    accuracy: float | None = None
    perplexity: float | None = None
    latency_ms: float = 0.0
    overrides: tuple[str, ...] = ()

    @property
    def links(self) -> bool:
        """Whether each block has a host of its own."""
        return self.mbit is not None or self.latency_ms > 0

    @property
    def suffix(self) -> str:
        """How the name of the stored result ends: what is special about the links."""
        latency = f"-{self.latency_ms:g}ms" if self.latency_ms else ""
        return latency if self.mbit is None else f"-{self.mbit}{latency}"

    def target(self, network: Network) -> float | None:
        """Return the score to which a network is trained."""
        return self.perplexity if network.perplexity else self.accuracy


def measure(network: Network, blocks: int, plan: Plan, folder: Path, report: Report) -> dict[str, Any]:
    """Measure one network in a number of blocks.

    Returns
    -------
    dict
        Configuration, environment, every round, and the figures of `benchmarks.throughput.figures.summary`.

    Raises
    ------
    NoHostsError
        Links can't be limited here.
    InputError
        There is no memory for so many systems at once.
    """
    names = list(plan.systems) or usual_names(blocks, network.microbatches, links=plan.links)
    _require_memory(names, blocks, blocks + 1 if plan.links else 1)
    engines = sum(one.startswith(OURS) for one in names)
    with place_for(folder, blocks, max(1, engines), plan.mbit, plan.latency_ms) as place:
        report(f"{network.title}, {blocks} blocks: starting {len(names)} systems")
        systems = start(names, network, blocks, place, plan.overrides)
        try:
            rounds = _rounds(systems, plan, report, (network.batch_size, network.parts(blocks)))
            rates = _matmul_rates(systems)
        finally:
            stop(systems)
        failures = {system.name: system.failure for system in systems if system.failure}
        reached = {}
        if (target := plan.target(network)) is not None:
            racing = plan.systems or usual_competitors(names)
            able = [one for one in racing if one not in failures and one != LIMIT]
            reached = time_to_target(target, able, network, blocks, place, plan.overrides, report)
    found = summary(rounds, names, min(blocks, os.cpu_count() or 1))
    return {
        "title": network.title,
        "blocks": blocks,
        "link_mbit": plan.mbit,
        "latency_ms": plan.latency_ms,
        "configuration": {"specification": network.specification(blocks, 1), "plan": asdict(plan)},
        "environment": environment() | {"cores": os.cpu_count()},
        **found,
        "not_measured": failures,
        "matmul_gflops": rates,
        "score": network.score_name,
        "time_to_target": reached,
        "rounds": rounds,
    }


def command(name: str, blocks: int, plan: Plan) -> str:
    """Return the command that repeats a measurement."""
    link = "" if plan.mbit is None else f" --link-mbit {plan.mbit}"
    link += f" --latency-ms {plan.latency_ms:g}" if plan.latency_ms else ""
    chosen = f" --systems {','.join(plan.systems)}" if plan.systems else ""
    target = plan.target(NETWORKS[name])
    to = "" if target is None else f" --{NETWORKS[name].score_name} {target:g}"
    settings = "".join(f" --set {setting}" for setting in plan.overrides)
    return (
        f"python -m benchmarks.throughput --networks {name} --blocks {blocks}{link} --rounds {plan.rounds} "
        f"--steps {plan.steps}{chosen}{to}{settings} --write"
    )


def _rounds(systems: Sequence[System], plan: Plan, report: Report, size: tuple[int, int]) -> list[Round]:
    """Measure; ``size`` is samples and micro-batches of a step."""
    by_name = {system.name: system for system in systems}
    rounds: list[Round] = []
    for turn in range(-1, plan.rounds):
        found: Round = {}
        for name in order_of(list(by_name), turn):
            if not by_name[name].failure:
                _take_turn(by_name[name], size, plan.lead, plan.steps if turn >= 0 else 1, found)
            _share_failure(systems)
        if turn < 0:
            report(f"measuring {sum(not system.failure for system in systems)} systems, {plan.rounds} rounds")
        else:
            rounds.append(found)
    return rounds


def _take_turn(system: System, size: tuple[int, int], lead: int, count: int, found: Round) -> None:
    before, began = psutil.cpu_times(), time.perf_counter()
    try:
        answers = system.ask("steps", TURN_SECONDS, lead=lead, count=count)
    except WorkerError:
        return  # the system keeps the reason
    capacity = (time.perf_counter() - began) * (os.cpu_count() or 1)
    merged = merge(answers, count, *size)
    own = sum(answer["cpu_seconds"] for answer in answers)
    merged["other_cpu_fraction"] = max(0.0, (_busy(before, psutil.cpu_times()) - own) / capacity)
    found[system.name] = merged


def _busy(before: Any, after: Any) -> float:
    """Return the seconds for which the machine's processors worked between two looks."""
    idle = after.idle - before.idle + after.iowait - before.iowait
    # Guest time is part of user time, and must not count twice.
    guest = after.guest - before.guest + after.guest_nice - before.guest_nice
    return float(sum(after) - sum(before) - idle - guest)


def _share_failure(systems: Sequence[System]) -> None:
    """Give up what ran in the same process as a system that failed."""
    failed = {id(system.team): system.failure for system in systems if system.failure}
    for system in systems:
        system.failure = system.failure or failed.get(id(system.team), "")


def _require_memory(names: Sequence[str], blocks: int, hosts: int) -> None:
    """Refuse what would bring the machine to a standstill: all systems are up at once, and on each host a Ray."""
    processes = sum(1 if name.startswith("single-") else blocks for name in names)
    needed, free = processes * PROCESS_BYTES + hosts * NODE_BYTES, psutil.virtual_memory().available
    if needed > free:
        found = f"{len(names)} systems of {processes} processes, with {free / 1e9:.1f} GB of memory free"
        raise InputError("--systems", found, f"at least {needed / 1e9:.1f} GB", "Name fewer systems.")


def _matmul_rates(systems: Sequence[System]) -> dict[str, Any]:
    """Return rates of matrix products in one process alone, and in as many as there are blocks at the same time."""
    limit = next((system for system in systems if system.name == LIMIT and not system.failure), None)
    if limit is None:
        return {}
    rates: dict[str, Any] = {}
    for rows in MATMUL_ROWS:
        message = {"do": "matmul", "rows": rows, "width": 1024, "seconds": MATMUL_SECONDS}
        alone = Team(limit.team.workers[:1]).ask(message, TURN_SECONDS)
        together = limit.team.ask(message, TURN_SECONDS)
        rates[f"{rows}x1024x1024"] = {
            "alone": alone[0]["gflops"],
            "together": [answer["gflops"] for answer in together],
        }
    return rates
