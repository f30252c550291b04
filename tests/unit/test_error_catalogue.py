"""The catalogue in `docs/errors.md` has every error and every exit code, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from lowdimfa import errors
from lowdimfa.services.cli.output import UNREAD

ROOT = Path(__file__).parents[2]
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.LowdimfaError) and kind.__module__ == errors.__name__
]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the catalogue."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_error_is_in_the_catalogue() -> None:
    documented = {
        (code.strip("`"), int(number), name.strip("`")) for code, number, name, *_ in rows("Catalogue")
    }
    assert documented == {(kind.code, kind.exit_code, kind.__name__) for kind in CLASSES}


def test_every_exit_code_is_explained() -> None:
    explained = [int(number) for number, _ in rows("Exit codes")]
    assert explained == sorted({0, UNREAD} | {kind.exit_code for kind in CLASSES})


def test_errors_are_defined_in_one_place() -> None:
    names = {kind.__name__ for kind in CLASSES}
    for folder in ("lowdimfa", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == Path(errors.__file__):
                continue
            text = path.read_text(encoding="utf-8")
            for name, bases in re.findall(r"^ *class (\w+)\(([^)]*)\)", text, re.MULTILINE):
                assert not names.intersection(re.split(r"\W+", bases)), f"{path}: {name}"
