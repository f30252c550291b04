"""The reference follows the schema."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lowdimfa.services.spec import parse_specification
from lowdimfa.services.spec.dialect import read_yaml
from lowdimfa.services.spec.expectations import ROOT, keys
from tools import configuration_page


def test_the_reference_is_up_to_date() -> None:
    assert configuration_page.REFERENCE.read_text(encoding="utf-8") == configuration_page.render_reference()


def test_every_key_is_described() -> None:
    reference = configuration_page.render_reference()
    for section, schema in ROOT["properties"].items():
        body = reference.split(f"## `{section}`\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| (.+\.) \|$", body, re.MULTILINE)
        assert len(rows) == len(re.findall(r"^\| `", body, re.MULTILINE))
        assert set(keys(schema)) <= {key for key, *_ in rows}


def test_the_smallest_specification_of_the_reference_is_valid() -> None:
    example = configuration_page.render_reference().split("```yaml\n")[1].split("```")[0]
    parse_specification(read_yaml(example, "example"), "example")


def test_check_tells_when_the_file_is_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_page, "REFERENCE", tmp_path / "configuration.md")
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert configuration_page.main() == 1
    monkeypatch.setattr(sys, "argv", ["docs"])
    assert configuration_page.main() == 0
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert configuration_page.main() == 0
    (tmp_path / "configuration.md").write_text("old", encoding="utf-8")
    assert configuration_page.main() == 1
