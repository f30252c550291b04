"""What YAML 1.1 and 1.2 read differently, and what people mean."""

from __future__ import annotations

from typing import Any

import pytest

from lowdimfa.errors import InputError
from lowdimfa.services.spec.dialect import read_yaml, write_yaml
from lowdimfa.services.spec.expectations import ROOT, resolved
from lowdimfa.services.spec.load import parse_text
from lowdimfa.services.spec.section import _WORDS

SMALL = "model: {factory: 'a:b', blocks: 2}\ndata: {factory: 'a:c'}\ntrain: {epochs: 1}\n"
ENUMERATIONS = [
    (section, key, word)
    for section, schema in ROOT["properties"].items()
    for key, value in resolved(schema).get("properties", {}).items()
    for word in value.get("enum", ())
]


@pytest.mark.parametrize(("section", "key", "word"), ENUMERATIONS)
def test_every_word_of_an_enumeration_works_unquoted(section: str, key: str, word: str) -> None:
    text = SMALL if section in SMALL else f"{SMALL}{section}: {{}}\n"
    read = read_yaml(f"{section}: {{{key}: {word}}}", "text")[section][key]
    given = read_yaml(text, "text")
    given[section] = (given[section] or {}) | {key: read}
    problems = _refused(write_yaml(given)) + _refused(text, [f"{section}.{key}={word}"])
    assert not [problem for problem in problems if f"{section}.{key}: found" in problem]


def _refused(text: str, overrides: list[str] | None = None) -> list[str]:
    try:
        parse_text(text, "text", overrides or [])
    except InputError as error:  # of settings that this one would need
        return error.message.replace("--set ", "").splitlines()
    return []


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "'off'"])
def test_metrics_are_turned_off_by_the_documented_word(word: str) -> None:
    assert parse_text(f"{SMALL}run: {{metrics: {word}}}\n", "text").run.metrics == "off"
    assert parse_text(SMALL, "text", [f"run.metrics={word}"]).run.metrics == "off"


def test_the_words_are_true_and_false_where_that_is_asked_for() -> None:
    for word, value in (("on", True), ("yes", True), ("off", False), ("no", False)):
        assert word in _WORDS[value]
        spec = parse_text(f"{SMALL}run: {{timeline: {word}}}\n", "text", [f"model.args.bias={word}"])
        assert spec.run.timeline is value
        assert spec.model.args == {"bias": value}
    with pytest.raises(InputError, match="found true; expected 'loopback'"):
        parse_text(f"{SMALL}run: {{metrics: on}}\n", "text")


@pytest.mark.parametrize("text", ["012", "-012", "007", "08", "00", "0_1"])
def test_numbers_with_a_leading_zero_are_refused_unless_quoted(text: str) -> None:
    for whole in (text, f"{{{text}: x}}", f"[{text}]"):
        with pytest.raises(InputError, match=f"line 1.*{text} has a leading zero"):
            read_yaml(whole, "text")
    assert read_yaml(f"'{text}'", "text") == text
    assert read_yaml(write_yaml({"value": text}), "text") == {"value": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("1:30.5", "1:30.5"),
        ("2026-11-28", "2026-11-28"),
        ("=", "="),
        ("0", 0),
        ("-0", 0),
        ("0x1f", 31),
        ("0b11", 3),
        ("1_000", 1000),
        ("01.5", 1.5),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: [1e-3,\r\n 2]\r\n", {"a": 1, "b": [1e-3, 2]}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    read = read_yaml(text, "text")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("text", ["{1: a, 0x1: b}", "{true: a, on: b}", "{1: a, 1.0: b}", "{a: 1, 'a': 2}"])
def test_keys_are_the_same_when_their_values_are(text: str) -> None:
    with pytest.raises(InputError, match=r"line 1.* comes twice"):
        read_yaml(text, "text")


@pytest.mark.parametrize("text", ["a:\n\tb: 1", "{!!set a: 1}", "? [a]\n: 1", "{!!set {a}: 1}"])
def test_what_is_no_yaml_of_ours_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(InputError, match="text, line"):
        read_yaml(text, "text")


def test_a_hint_does_not_quote_what_nobody_wrote() -> None:
    with pytest.raises(InputError, match=r"found true; expected .*Quote it if a string is meant\.$"):
        parse_text(SMALL.replace("blocks: 2", "blocks: [on]"), "text")
