"""Every row of the table of faults names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_has_its_test() -> None:
    text = (ROOT / "docs" / "faults.md").read_text("utf-8")
    table = text.split("## What is lost, and what becomes of it")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        named = re.fullmatch(r"`(tests/[a-z0-9_/]+\.py)(?:::(test_[a-z0-9_]+))?`", cells[-1])
        assert len(cells) == 5 and named, row
        path, name = ROOT / named[1], named[2]
        assert path.is_file(), row
        assert name is None or f"def {name}(" in path.read_text("utf-8"), row
