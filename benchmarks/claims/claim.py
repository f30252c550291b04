"""What a claim is to the command line and the page, and the list of all claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.claims.cache import RunCache
from lowdimfa.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["reproduced", "partly", "not reproduced", "reached", "not reached"]
"""On a claim of the paper, or on a target of this project."""
Result = Mapping[str, Any]
"""A stored result: plain JSON data."""

MODULES = {
    "C1": "benchmarks.claims.c1",
    "C2": "benchmarks.claims.c2",
    "C3": "benchmarks.claims.c3",
    "C4": "benchmarks.claims.c4",
    "C5": "benchmarks.claims.c5",
    "C6": "benchmarks.claims.c6",
    "C7": "benchmarks.claims.c7",
    "C8": "benchmarks.claims.c8",
    "GAP": "benchmarks.gap.closing",
    "BLOCKS": "benchmarks.gap.blocks",
    "DIMENSION": "benchmarks.gap.dimension",
}
"""The module of every claim, each with a constant ``CLAIM``; imported only when it is used.

The paper's claims, then what this project claims of its broadcast form.
"""


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked for.

    Attributes
    ----------
    seeds
        Runs of each configuration; the seeds are 0, 1, ….
    budget_minutes
        Wall time aimed at for the whole claim, or None for the claim's own setting.
    epochs
        Passes over the data where both generations of the rule are compared, or None for the claim's own.
    device
        Where networks are trained.
    threads
        Threads of torch.
    cache
        Runs that were made already.
    processes
        Of this machine, which share the runs.
    core
        Whether only what the targets name is run where both generations are compared, on the first network.
    """

    seeds: int = 3
    budget_minutes: float | None = None
    epochs: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    cache: RunCache = field(default_factory=RunCache)
    processes: int = 1
    core: bool = False

    @property
    def is_try(self) -> bool:
        """Whether the claim's own length was changed: the result doesn't stand for the claim."""
        return self.budget_minutes is not None or self.epochs is not None


@dataclass(frozen=True)
class Claim:
    """One claim of the paper (arXiv:2502.20580) and how it is tested.

    Attributes
    ----------
    name
        Its key in `MODULES`.
    title
        The claim in one sentence.
    run
        Measures, and returns plain data with ``configuration``, ``runs`` and ``summary``.
    draw
        Returns the figure of a stored result.
    judge
        Returns the verdict on a stored result and its reason, from the numbers.
    tables
        Returns the tables of a stored result as Markdown.
    """

    name: str
    title: str
    run: Callable[[RunSettings], dict[str, Any]]
    draw: Callable[[Result], Figure]
    judge: Callable[[Result], tuple[Verdict, str]]
    tables: Callable[[Result], str]


def load(name: str) -> Claim:
    """Import one claim by name."""
    claim: Claim = import_module(MODULES[name]).CLAIM
    return claim


def checked_names(names: Sequence[str]) -> list[str]:
    """Return the claims that were asked for, in their order, each once; all of them where none was named.

    Raises
    ------
    InputError
        A name isn't a claim's.
    """
    asked = [name.upper() for name in names]
    for name, given in zip(asked, names, strict=True):
        if name not in MODULES:
            raise InputError("claims", f"{given!r}", f"some of {', '.join(MODULES)}")
    return [name for name in MODULES if not asked or name in asked]
