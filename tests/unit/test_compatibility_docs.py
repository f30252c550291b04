"""The page on compatibility names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_is_there() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    named = set(re.findall(r"`((?:tests/)?[a-z0-9_/]*test_[a-z0-9_]+\.py)`", text))
    assert len(named) > 10
    known = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [name for name in named if not (ROOT / name).is_file() and name not in known]
