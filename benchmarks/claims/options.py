"""What every command that makes training runs can be asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.claims.cache import RunCache
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.storing import Places
from lowdimfa.errors import InputError

Thing = TypeVar("Thing")
_COUNTS = ("seeds", "processes", "threads")


def add_run_options(parser: argparse.ArgumentParser, places: Places) -> None:
    """Let a command be asked for them."""
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each configuration (default %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="of this machine that share the runs (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch in each (default %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="make runs again that were made already")
    parser.add_argument(
        "--runs",
        type=Path,
        default=places.runs,
        help="file of finished runs: those it has aren't made again, new ones are added (default runs/claims/runs.jsonl)",
    )


def known(asked: Iterable[str], names: Iterable[str], what: str) -> list[str]:
    """Return the names that were asked for, in their order.

    Raises
    ------
    InputError
        There is no such name.
    """
    for name in asked:
        if name not in names:
            raise InputError(what, repr(name), f"some of {', '.join(names)}")
    return [name for name in names if name in asked]


def picked(things: Sequence[Thing], patterns: Sequence[str], label: Callable[[Thing], str]) -> list[Thing]:
    """Return the things whose label matches a pattern of a shell; all of them where there is no pattern.

    Raises
    ------
    InputError
        A pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(label(thing), pattern) for thing in things):
            labels = "; ".join(map(label, things))
            raise InputError("--rules", repr(pattern), f"patterns of some of these: {labels}")
    return [one for one in things if not patterns or any(fnmatchcase(label(one), p) for p in patterns)]


def run_settings(asked: argparse.Namespace, **others: Any) -> RunSettings:
    """Return the settings that a command was asked for.

    Raises
    ------
    InputError
        A number is below 1.
    """
    for name in _COUNTS:
        if getattr(asked, name) < 1:
            raise InputError(f"--{name}", str(getattr(asked, name)), "at least 1")
    counts = {name: getattr(asked, name) for name in _COUNTS}
    return RunSettings(**counts, cache=RunCache(asked.runs, asked.fresh), **others)
