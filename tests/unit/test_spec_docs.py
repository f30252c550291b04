"""The reference follows the schema."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from services.spec import docs, parse_specification
from services.spec.dialect import read_yaml
from services.spec.expectations import ROOT, keys


def test_the_reference_is_up_to_date() -> None:
    assert docs.REFERENCE.read_text(encoding="utf-8") == docs.render_reference()


def test_every_key_is_described() -> None:
    reference = docs.render_reference()
    for section, schema in ROOT["properties"].items():
        body = reference.split(f"## `{section}`\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| (.+\.) \|$", body, re.MULTILINE)
        assert len(rows) == len(re.findall(r"^\| `", body, re.MULTILINE))
        assert set(keys(schema)) <= {key for key, *_ in rows}


def test_the_smallest_specification_of_the_reference_is_valid() -> None:
    example = docs.render_reference().split("```yaml\n")[1].split("```")[0]
    parse_specification(read_yaml(example, "example"), "example")


def test_check_tells_when_the_file_is_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "REFERENCE", tmp_path / "configuration.md")
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 1
    monkeypatch.setattr(sys, "argv", ["docs"])
    assert docs.main() == 0
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 0
    (tmp_path / "configuration.md").write_text("old", encoding="utf-8")
    assert docs.main() == 1
