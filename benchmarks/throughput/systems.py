"""The systems that are compared, each as a team of processes that stays up between rounds."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from benchmarks.throughput.networks import Network
from benchmarks.throughput.places import LocalPlace, Place
from benchmarks.throughput.process import Answer, Team, WorkerError
from benchmarks.throughput.registry import (
    DELAYED,
    FORMATS,
    LIMIT,
    RIVALS,
    configuration,
    rival_of,
    without_parts,
)
from lowdimfa.services.spec import parse_specification

START_SECONDS = 300.0
STALENESS = (0, 1, 2)
OURS = "lowdimfa-s"
WHOLE = "-whole"
"""Ends the name of this runtime without micro-batches: with staleness it needs none to keep its blocks busy."""
LAYERS = "-layers"
"""Ends the name of this runtime with the error at every layer of a block, so that no block has a backward pass."""

VARIANTS = (WHOLE, LAYERS, f"{LAYERS}{WHOLE}")
"""Of this runtime at a staleness of 1."""

ELSEWHERE = ("powersgd", "diloco", "1f1b-recompute")
"""What nobody would choose where links are fast and memory suffices."""

TWO_STAGES = f"2bw{WHOLE}"
"""What more than 2 stages can't do."""

MANY = 8
"""Blocks with which only those systems are measured that may be the best: a process of each takes 0.4 GB."""


def single_names(blocks: int, microbatches: int) -> list[str]:
    """Return backpropagation in one process: ``single-<threads>`` for whole batches, ``single-<threads>x<parts>``."""
    threads = sorted({1, min(blocks, os.cpu_count() or 1), os.cpu_count() or 1})
    return [f"single-{count}{part}" for count in threads for part in ("", f"x{microbatches}")]


def all_names(blocks: int, microbatches: int) -> list[str]:
    """Return the names of all systems, options of their names left out."""
    ours = [f"{OURS}{staleness}" for staleness in STALENESS]
    others = [name for name in RIVALS if name != "single"]
    packing = [*ours, f"{OURS}1{WHOLE}", *(name for name in others if RIVALS[name].packs)]
    return [
        *ours,
        *(f"{OURS}1{variant}" for variant in VARIANTS),
        *single_names(blocks, microbatches),
        *others,
        *(f"{name}+{travel}" for name in packing for travel in FORMATS),
    ]


def is_known(name: str, blocks: int, microbatches: int) -> bool:
    """Return whether there is a system of that name."""
    if name.startswith(OURS):
        return name in all_names(blocks, microbatches)
    try:
        return bool(configuration(name))
    except ValueError:
        return False


def usual_names(blocks: int, microbatches: int, links: bool) -> list[str]:
    """Return the systems that are measured where none are named.

    On one machine those whose tensors travel as they are: there is nothing to gain by less. Over links the pipelines that
    lose least to them, packed and not, and what is used in their place. With more than 2 blocks those with the error at
    every layer are left out: the others fill 20 GB by themselves.
    """
    ours, single = f"{OURS}1", f"single-{min(blocks, os.cpu_count() or 1)}"
    delayed = [name for name in DELAYED if blocks == 2 or name != TWO_STAGES]
    if blocks >= MANY:
        packed = [f"{name}+int8" for name in (ours, "1f1b", "2bw")] if links else []
        apart = ["powersgd", "diloco"] if links else ["ddp"]
        return [ours, f"{ours}{WHOLE}", single, "1f1b", "zero-bubble-h1", *delayed, *packed, *apart, LIMIT]
    if not links:
        names = [name for name in all_names(blocks, microbatches) if "+" not in name]
        left_out = ELSEWHERE if blocks == 2 else (*ELSEWHERE, TWO_STAGES)
        return [name for name in names if name not in left_out and (blocks == 2 or LAYERS not in name)]
    theirs = ["1f1b", "zero-bubble-h1", *delayed]
    packed = [f"{ours}+bf16", *(f"{name}+int8" for name in (ours, "1f1b", "zero-bubble-h1", "2bw"))]
    return [ours, f"{ours}{WHOLE}", single, *theirs, *packed, "powersgd", "diloco", LIMIT]


@dataclass
class System:
    """A system that is up, or the reason why it isn't.

    Attributes
    ----------
    name
        As in the figures.
    team
        Its processes.
    failure
        Why it can't be measured any more; empty for one that can.
    shared
        Whether other systems use the same process.
    """

    name: str
    team: Team
    failure: str = ""
    shared: bool = field(default=False)

    def ask(self, command: str, seconds: float, **details: Any) -> list[Answer]:
        """Let all its processes carry a command out; an error ends the system.

        Raises
        ------
        WorkerError
            It failed.
        """
        try:
            return self.team.ask({"do": command, "system": self.name, **details}, seconds)
        except WorkerError as error:
            self.failure = str(error)
            self.team.kill()
            raise


def start(
    names: Sequence[str],
    network: Network,
    blocks: int,
    place: Place,
    overrides: Sequence[str],
    real: bool = False,
) -> list[System]:
    """Start systems; one that doesn't start has the reason.

    Parameters
    ----------
    names
        Some of `all_names`.
    network, blocks
        What is trained, in how many blocks or by how many processes.
    place
        Where.
    overrides
        Settings ``a.b=value`` on top of this runtime's specification; where the network is cut counts for all.
    real
        On real data.
    """

    def plain(name: str) -> dict[str, Any]:
        train: dict[str, Any]
        if not name.startswith(OURS):
            parts = 1 if name.partition("+")[0].endswith(WHOLE) else without_parts(name)[1]
            train = {} if parts is None else {"microbatches": parts}
            own = network.specification(blocks, real=real, train=train, **place.sections)
            return overridden(own, [one for one in overrides if one.startswith("model.")])
        base, plus, travel = name.removeprefix(OURS).partition("+")
        staleness, *variants = base.split("-")
        train = {"activations": travel} if plus else {}
        if WHOLE[1:] in variants:
            train["microbatches"] = 1
        own = network.specification(blocks, int(staleness), real=real, train=train, **place.sections)
        if LAYERS[1:] in variants:
            own["feedback"] = network.feedback | {"every_layer": True}
        return overridden(own, overrides)

    ours = [name for name in names if name.startswith(OURS)]
    systems: list[System] = []
    try:
        if ours:
            engines = {name: plain(name) for name in ours}
            host = {
                "class": "runtime:Runtime",
                # Through a pipe as JSON, which has no numbers as keys, such as those of blocks.
                "engines": {name: yaml.safe_dump(engine) for name, engine in engines.items()},
                "folder": str(place.folder / ("real-runs" if real else "runs")),
                "address": place.ray_address,
                "blocks": sum(
                    sum(parse_specification(engine, name).replicas) for name, engine in engines.items()
                ),
            }
            team = Team([place.trainer("runtime-real" if real else "runtime", host)])
            systems += (System(name, team, shared=True) for name in ours)
        for name in names:
            if name not in ours:
                systems.append(System(name, _peer(name, plain(name), blocks, place, real)))
        _await(systems)
    except BaseException:
        stop(systems)
        raise
    return systems


def overridden(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return a specification with settings ``a.b=value`` on top, the values in YAML.

    Raises
    ------
    ValueError
        A setting has no ``=``.
    """
    changed: dict[str, Any] = copy.deepcopy(plain)
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r}; expected a setting such as train.window=8")
        *sections, key = path.split(".")
        place = changed
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = yaml.safe_load(value)
    return changed


def _peer(name: str, plain: dict[str, Any], blocks: int, place: Place, real: bool) -> Team:
    log = f"{name}-real" if real else name
    base = {"specification": plain} | configuration(name)
    if name.startswith("single-"):
        return Team([place.worker(0, log, base)])
    exchange = place.folder / f"exchange-{log}"
    exchange.mkdir(exist_ok=True)
    world = blocks
    if isinstance(place, LocalPlace) and rival_of(name).replicates:
        world = min(blocks, os.cpu_count() or 1)
    base |= {"world": world, "meet": place.meet(), "exchange": str(exchange)}
    return Team([place.worker(rank, log, base | {"rank": rank}) for rank in range(world)])


def _await(systems: Iterable[System]) -> None:
    heard: dict[int, str] = {}
    for system in systems:
        if id(system.team) not in heard:
            try:
                system.team.hear(START_SECONDS)
                heard[id(system.team)] = ""
            except WorkerError as error:
                heard[id(system.team)] = str(error)
                system.team.kill()
        system.failure = heard[id(system.team)]


def stop(systems: Iterable[System]) -> None:
    """End all systems."""
    for team in {id(system.team): system.team for system in systems}.values():
        team.close()
