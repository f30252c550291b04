"""Where results and figures of claims lie, and how they are written and read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import MODULES, Claim, Result, RunSettings, load
from benchmarks.claims.figures import write_figure
from benchmarks.reporting import RESULTS, environment, write_result
from lowdimfa.errors import InputError


@dataclass(frozen=True)
class Places:
    """The folders that are read and written, and the file of finished runs."""

    results: Path = RESULTS
    docs: Path = RESULTS.parent.parent / "docs"
    runs: Path = RESULTS.parent.parent / "runs" / "claims" / "runs.jsonl"

    @property
    def readme(self) -> Path:
        """The page with the table of the broadcast form."""
        return self.docs.parent / "README.md"

    def figure(self, name: str) -> Path:
        """Return the path of a figure by the name of its result."""
        return self.docs / "figures" / f"{name}.png"


def measure(claim: Claim, settings: RunSettings) -> dict[str, Any]:
    """Run a claim, and return what is stored: the result, how to get it again, and where it was measured.

    ``seconds`` is the time of this call, unless the claim says how long its runs took, some of which may have been made
    before.
    """
    started = time.monotonic()
    found = claim.run(settings)
    return {
        "benchmark": "claim",
        "claim": claim.name,
        "title": claim.title,
        "command": command([claim.name], settings),
        "seeds": settings.seeds,
        "date": datetime.now(UTC).strftime("%d %B %Y"),
        "environment": environment(settings.device),
        "seconds": round(time.monotonic() - started, 1),
        **found,
    }


def command(names: Sequence[str], settings: RunSettings) -> str:
    """Return the command that makes a result again; the device is a fact of the environment instead."""
    parts = ["python -m benchmarks.claims", *names, f"--seeds {settings.seeds}"]
    if settings.budget_minutes is not None:
        parts.append(f"--budget {settings.budget_minutes:g}")
    if settings.epochs is not None:
        parts.append(f"--epochs {settings.epochs}")
    if settings.core:
        parts.append("--core")
    return " ".join(parts)


def store(result: Result, places: Places) -> None:
    """Write a result, as JSON that reads the same when it comes back, and its figure."""
    write_result(f"claim-{result['claim']}", result, places.results)
    draw_stored(result["claim"], places)


def stored(name: str, places: Places) -> Result | None:
    """Return the stored result of a claim, or None where there is none.

    Raises
    ------
    InputError
        The file isn't a result of that claim.
    """
    path = places.results / f"claim-{name}.json"
    if not path.exists():
        return None
    found = read_json(path)
    if found.get("claim") != name:
        raise InputError(str(path), f"a result of claim {found.get('claim')!r}", f"one of {name}")
    return found


def stored_claims(places: Places) -> dict[str, tuple[Claim, Result]]:
    """Return every claim that has a stored result, with it, in order."""
    results = ((name, stored(name, places)) for name in MODULES)
    return {name: (load(name), result) for name, result in results if result is not None}


def draw_stored(name: str, places: Places) -> None:
    """Draw the figure of a stored result anew."""
    result = stored(name, places)
    if result is not None:
        with made_by_this_version(name):
            write_figure(lambda: load(name).draw(result), places.figure(f"claim-{name}"))


@contextmanager
def made_by_this_version(name: str) -> Iterator[None]:
    """Say which result is of older settings, instead of which number it lacks."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"claim-{name}.json",
            f"a result without {error}",
            "what the present settings give",
            f"Run python -m benchmarks.claims {name}.",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises
    ------
    InputError
        The file doesn't hold one.
    """
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(str(path), f"text that isn't JSON ({error})", "a stored result") from error
    if not isinstance(found, dict):
        raise InputError(str(path), f"a JSON {type(found).__name__}", "a stored result, a JSON object")
    return found
