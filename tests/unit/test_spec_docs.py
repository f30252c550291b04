"""The reference follows the schema."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from lowdimfa.config import Activations, FactoryConfig, FeedbackConfig, RankConfig, TrainingConfig
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.spec.dialect import read_yaml
from lowdimfa.services.spec.expectations import ROOT, keys
from lowdimfa.services.spec.learning import FeedbackSection, RankSection, TrainSection
from lowdimfa.services.spec.section import Rule, Section
from tools import configuration_page


def test_the_reference_is_up_to_date() -> None:
    assert configuration_page.REFERENCE.read_text(encoding="utf-8") == configuration_page.render_reference()
    assert configuration_page.SETTINGS.read_text(encoding="utf-8") == configuration_page.render_settings()


def test_every_key_is_described() -> None:
    reference = configuration_page.render_reference()
    for section, schema in ROOT["properties"].items():
        body = reference.split(f"## `{section}`\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| (.+\.) \|$", body, re.MULTILINE)
        assert len(rows) == len(re.findall(r"^\| `", body, re.MULTILINE))
        assert set(keys(schema)) <= {key for key, *_ in rows}


@pytest.mark.parametrize(
    ("section", "config"), [(FeedbackSection, FeedbackConfig), (TrainSection, TrainingConfig)]
)
def test_settings_of_the_library_are_keys_as_it_defines_them(
    section: type[Section], config: type[Any]
) -> None:
    types = get_type_hints(config)
    settings = [field for field in fields(config) if field.metadata]
    assert len(settings) > 5
    for field in settings:
        key = section.model_fields[field.name]
        assert (key.default, key.description) == (field.default, field.metadata["description"])
        taken = set(get_args(types[field.name]))
        if Callable[..., Any] in taken:  # which a specification takes as an object, or names
            assert "Given" in str(key.annotation)
        else:
            own = Activations | RankSection if RankConfig in taken else types[field.name]
            assert key.annotation == (str | Rule if FactoryConfig in taken else own)


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
