"""The systems that are compared, each as a team of processes that stays up between rounds."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from benchmarks.throughput.networks import Network
from benchmarks.throughput.pipelines import SCHEDULES
from benchmarks.throughput.places import Place
from benchmarks.throughput.process import Answer, Team, WorkerError

START_SECONDS = 300.0
STALENESS = (0, 1, 2)
OURS = "lowdimfa-s"
LIMIT = "limit"
ZERO_BUBBLE = ("interleaved-zero-bubble", "zero-bubble-h1", "zbv-zero-bubble")
WHOLE = "-whole"
"""Ends the name of this runtime without micro-batches: with staleness it needs none to keep its blocks busy."""
LAYERS = "-layers"
"""Ends the name of this runtime with the error at every layer of a block, so that no block has a backward pass."""
COARSE = "-bf16"
"""Ends the names of systems whose activations, and a pipeline's gradients, travel as bfloat16."""


VARIANTS = (WHOLE, LAYERS, f"{LAYERS}{WHOLE}")
"""Of this runtime at a staleness of 1."""


def single_names(blocks: int, microbatches: int) -> list[str]:
    """Return backpropagation in one process: ``single-<threads>`` for whole batches, ``single-<threads>x<parts>``."""
    threads = sorted({1, min(blocks, os.cpu_count() or 1), os.cpu_count() or 1})
    return [f"single-{count}{part}" for count in threads for part in ("", f"x{microbatches}")]


def all_names(blocks: int, microbatches: int, coarse: bool) -> list[str]:
    """Return the names of all systems; ``coarse`` adds those whose activations travel as bfloat16."""
    ours, pipelines = [f"{OURS}{staleness}" for staleness in STALENESS], list(SCHEDULES)
    with_coarse = [f"{name}{COARSE}" for name in (*ours, *pipelines)] if coarse else []
    return [
        *ours,
        *(f"{OURS}1{variant}" for variant in VARIANTS),
        *single_names(blocks, microbatches),
        *pipelines,
        "ddp",
        *with_coarse,
        LIMIT,
    ]


def usual_names(blocks: int, microbatches: int, links: bool) -> list[str]:
    """Return the systems that are measured where none are named.

    Over links these are fewer: all of them, in both formats, would be a hundred processes at 4 blocks. With more than
    2 blocks those with the error at every layer are left out: the others fill 20 GB by themselves.
    """
    if not links:
        return [
            name
            for name in all_names(blocks, microbatches, coarse=False)
            if blocks == 2 or LAYERS not in name
        ]
    ours, theirs = f"{OURS}1", ["1f1b", *ZERO_BUBBLE[1:]]
    single = f"single-{min(blocks, os.cpu_count() or 1)}"
    coarse = [f"{name}{COARSE}" for name in (ours, *theirs[:2])]
    return [f"{OURS}0", ours, f"{ours}{WHOLE}", single, *theirs, *coarse, LIMIT]


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
        Settings ``a.b=value`` on top of this runtime's specification.
    real
        On real data.
    """

    def plain(name: str) -> dict[str, Any]:
        if not name.startswith(OURS):
            return network.specification(blocks, real=real, **place.sections)
        staleness, *variants = name.removeprefix(OURS).split("-")
        train: dict[str, Any] = {"activations": "bf16"} if COARSE[1:] in variants else {}
        if WHOLE[1:] in variants:
            train["microbatches"] = 1
        own = network.specification(blocks, int(staleness), real=real, train=train, **place.sections)
        if LAYERS[1:] in variants:
            own["feedback"] = {"every_layer": True}
        return overridden(own, overrides)

    ours = [name for name in names if name.startswith(OURS)]
    systems: list[System] = []
    try:
        if ours:
            configuration = {
                "kind": "runtime",
                "engines": {name: plain(name) for name in ours},
                "folder": str(place.folder / ("real-runs" if real else "runs")),
                "address": place.ray_address,
                "blocks": blocks * len(ours),
            }
            team = Team([place.trainer("runtime-real" if real else "runtime", configuration)])
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
    base: dict[str, Any] = {"specification": plain}
    if name.startswith("single-"):
        threads, _, parts = name.removeprefix("single-").partition("x")
        base |= {"kind": "single", "threads": int(threads), "parts": int(parts or 1)}
        return Team([place.worker(0, f"{name}-real" if real else name, base)])
    base |= {"kind": name, "world": blocks}
    if name not in (LIMIT, "ddp"):
        coarse = name.endswith(COARSE)
        exchange = place.folder / f"exchange-{name}"
        exchange.mkdir(exist_ok=True)
        base |= {
            "kind": "pipeline",
            "schedule": name.removesuffix(COARSE),
            "activations": "bf16" if coarse else "fp32",
            "exchange": str(exchange),
        }
    base["meet"] = place.meet()
    log = f"{name}-real" if real else name
    return Team([place.worker(rank, log, base | {"rank": rank}) for rank in range(blocks)])


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
