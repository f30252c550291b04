"""Settings put into the text of a specification: read as they were given, and nothing else of the text is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.spec.dialect import read_yaml
from lowdimfa.services.spec.load import load_specification
from lowdimfa.services.spec.rewriting import rewritten

TEXT = """# a digit's network
model:
  factory: lowdimfa.models:mlp
  args: {width: 128, depth: 4}  # small
  blocks:
    # the second half
    - '2'
data:
  factory: lowdimfa.data:digits
train:
  batch_size: 50  # of 1,437
  microbatches: 2
  # ends after
  epochs: 20

run: {keep: 3}
"""

KEYS = [
    *["train.microbatches", "train.window", "train.batch_size", "model.blocks", "model.args.width"],
    *[
        "run.keep",
        "run.storage",
        "placement.threads_per_block",
        "placement.replicas.0",
        "feedback.every_layer",
    ],
]


def with_value(mapping: dict[Any, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for name in above:
        mapping = mapping.setdefault(name, {})
    mapping[0 if last == "0" else last] = value


@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            st.integers(), st.booleans(), st.none(), st.text(), st.lists(st.text(max_size=3), max_size=3)
        ),
    )
)
def test_what_is_read_is_what_was_there_with_the_settings(settings: dict[str, Any]) -> None:
    wanted = read_yaml(TEXT, "")
    for key, value in settings.items():
        with_value(wanted, key, value)
    found = rewritten(TEXT, "spec.yaml", settings)
    assert read_yaml(found, "") == wanted
    comments = ["# a digit's network", "# small", "# of 1,437", "# ends after"]
    assert [words for words in comments if words in found] == comments


def test_lines_without_a_change_are_as_they_were_written() -> None:
    found = rewritten(
        TEXT, "spec.yaml", ["train.microbatches=1"], {"train.window": None, "model.blocks": ["1"]}
    )
    changed = [line for line in found.splitlines() if line not in TEXT.splitlines()]
    assert changed == ["  blocks: ['1']", "  microbatches: 1", "  window: null"]


@pytest.mark.parametrize(
    "text",
    ["a: &x {b: 1}\nc: *x\n", "a:\n  <<: {b: 1}\n  d: 2\n", "{a: {b: 1}}", "a:\n"],
)
def test_however_a_text_is_written_the_settings_are_in_it(text: str) -> None:
    wanted = read_yaml(text, "")
    wanted = {**wanted, "a": {**(wanted["a"] or {}), "b": 7}}
    assert read_yaml(rewritten(text, "", {"a.b": 7}), "") == wanted


def test_the_examples_keep_their_comments(tmp_path: Path) -> None:
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        new = tmp_path / path.name
        settings = {"train.microbatches": 1, "train.window": 1, "placement.transport": "grpc"}
        new.write_text(rewritten(text, "", settings), encoding="utf-8")
        assert load_specification(new) == load_specification(path, settings)
        kept = [line for line in text.splitlines() if line.lstrip().startswith("#")]
        assert [line for line in new.read_text(encoding="utf-8").splitlines() if line in kept] == kept
