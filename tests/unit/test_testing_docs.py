"""The page on tests names files that are there, under the command that runs them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs" / "testing.md").read_text("utf-8").split("## Which promise is proved where")[1]


def test_every_promise_has_its_tests() -> None:
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        _, quick, slow = (
            re.findall(r"`(tests/[a-z0-9_/]+\.py)`", cell) for cell in row.strip("|").split("|")
        )
        assert quick or slow, row
        for path in (*quick, *slow):
            text = (ROOT / path).read_text("utf-8")
            whole_file_is_slow = re.search(r"^pytestmark = [\[\s]*pytest\.mark\.slow\b", text, re.MULTILINE)
            assert path not in slow or "pytest.mark.slow" in text, row
            assert path not in quick or not whole_file_is_slow, row
