"""The nodes of a Ray cluster: what is installed on each, what it has, and what its clock shows."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowdimfa.errors import LowdimfaError, in_words
from lowdimfa.services.cli.doctor.finding import Finding, ok, problem, warning
from lowdimfa.services.cli.doctor.software import version_of
from lowdimfa.services.cli.words import size
from lowdimfa.services.trainer.cluster import start_ray

PACKAGES = ("lowdimfa", "torch", "ray", "numpy")
"""Whose versions are compared."""

_TIMES = 5
"""Questions for a node's clock; the one that was answered soonest counts."""

CLOCK_NOTICED, CLOCK_MOST = 1.0, 3600.0
"""Seconds between clocks from which a run's events are out of order, and from which its certificates aren't valid."""


@dataclass(frozen=True)
class Node:
    """What a node told.

    Attributes
    ----------
    address
        Of the node.
    resources
        What it has, by Ray's names.
    versions
        Of Python and of `PACKAGES`; None where one isn't installed.
    clock
        Seconds by which its clock is ahead of this machine's.
    doubt
        By how many seconds that may be wrong.
    error
        Why it told nothing; empty if it did.
    """

    address: str
    resources: Mapping[str, float]
    versions: Mapping[str, str | None]
    clock: float = 0.0
    doubt: float = 0.0
    error: str = ""


def node(there: Node, here: Mapping[str, str | None]) -> Finding:
    """Compare a node with this machine.

    Parameters
    ----------
    there
        What it told.
    here
        The versions on this machine.
    """
    check = f"node {there.address}"
    if there.error:
        return problem(
            check, there.error, "Look at the node, and at Ray's logs there (/tmp/ray/session_latest/logs)."
        )
    other = {name: version for name, version in there.versions.items() if version != here[name]}
    if other:
        said = ", ".join(
            f"{name} {version or 'not installed'} (here {here[name]})" for name, version in other.items()
        )
        todo = "Install the same versions on all nodes."
        fatal = there.versions["lowdimfa"] != here["lowdimfa"] or None in other.values()
        return (problem if fatal else warning)(check, said, todo)
    apart = abs(there.clock) - there.doubt
    found = (
        f"{_resources(there.resources)}; same versions; clock {there.clock:+.3f} s (± {there.doubt:.3f} s)"
    )
    if apart < CLOCK_NOTICED:
        return ok(check, found)
    return (problem if apart >= CLOCK_MOST else warning)(
        check, found, "Set its clock, for instance with NTP."
    )


def cluster(address: str, liveness: float) -> Iterator[Finding]:
    """Join a cluster, and look at each of its nodes.

    Parameters
    ----------
    address
        As ``train --address`` takes it.
    liveness
        Seconds within which the cluster, and then all nodes together, have to answer.
    """
    try:
        leave = start_ray(address, liveness=liveness)
    except LowdimfaError as error:
        yield problem("cluster", error.message, "")
        return
    except Exception as error:  # Ray's own, such as for other versions than the cluster's
        yield problem(
            "cluster", in_words(error), "Install here what the cluster has, or look at Ray's logs there."
        )
        return
    try:
        here = _versions()
        nodes = _read(liveness)
        yield ok("cluster", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} at {address}")
        for there in nodes:
            yield node(there, here)
    finally:
        leave()


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def _read(liveness: float) -> list[Node]:
    deadline = time.monotonic() + liveness
    alive = [each for each in ray.nodes() if each["Alive"]]
    probe = ray.remote(_probe())
    probes = [
        probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        ).remote()
        for each in alive
    ]
    asked = [each.versions.remote(PACKAGES) for each in probes]  # all nodes start a process at the same time
    return [_asked(*each, deadline) for each in zip(alive, probes, asked, strict=True)]


def _asked(entry: dict[str, Any], probe: Any, asked: Any, deadline: float) -> Node:
    address, resources = entry["NodeManagerAddress"], entry["Resources"]
    try:
        versions = ray.get(asked, timeout=max(0.1, deadline - time.monotonic()))
        readings = [_clock(probe, deadline) for _ in range(_TIMES)]
    except Exception as error:  # its process may end in many ways
        return Node(address, resources, {}, error=f"no answer: {in_words(error)}")
    clock, doubt = min(readings, key=lambda reading: reading[1])
    return Node(address, resources, versions, clock, doubt)


def _clock(probe: Any, deadline: float) -> tuple[float, float]:
    before = time.time()
    there = ray.get(probe.clock.remote(), timeout=max(0.1, deadline - time.monotonic()))
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2


def _probe() -> type:
    """Return the class of what is asked on a node; made in here it travels whole, since this module may not be there."""

    class Probe:
        def versions(self, names: tuple[str, ...]) -> dict[str, str | None]:
            import platform
            from importlib import metadata

            found: dict[str, str | None] = {"python": platform.python_version()}
            for name in names:
                try:
                    found[name] = metadata.version(name)
                except metadata.PackageNotFoundError:
                    found[name] = None
            return found

        def clock(self) -> float:
            import time

            return time.time()

    return Probe


def _resources(resources: Mapping[str, float]) -> str:
    gpus = resources.get("GPU", 0)
    parts = [f"{resources.get('CPU', 0):g} CPUs", *([f"{gpus:g} GPUs"] if gpus else [])]
    return ", ".join([*parts, f"{size(resources.get('memory', 0))} memory"])
