"""What a person sees of a run in the terminal."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.cli.display import JsonDisplay, TextDisplay, wrapped
from lowdimfa.services.cli.words import fitted, joined, numbers_of

STARTED: dict[str, Any] = {
    "event": "started",
    "engine": "ray",
    "blocks": 2,
    "parameters": 1000,
    "error_dim": 1,
    "source": "logits",
    "evaluated_split": "test",
    "steps": 1000,
    "step": 0,
    "run_dir": "/runs/a",
}
RECOVERING: dict[str, Any] = {
    "event": "recovering",
    "time": 1.0,
    "policy": "rejoin",
    "blocks": [1],
    "reason": "block 1 lost its process (killed by signal 9)",
    "step": 1412,
    "recovery": 1,
}
RECOVERED: dict[str, Any] = {
    "event": "recovered",
    "time": 5.2,
    "policy": "rejoin",
    "blocks": [1],
    "step": 1412,
    "missed": {"1": 7},
    "seconds": 4.21,
}


def shown(*events: dict[str, Any]) -> list[str]:
    """Return the lines that some events of a run under way add."""
    stream = io.StringIO()
    with TextDisplay(stream) as display:
        display.show({"event": "starting"})
        display.show(STARTED)
        before = len(stream.getvalue())
        for event in events:
            display.show(event)
        return stream.getvalue()[before:].splitlines()


def test_the_start_says_what_is_broadcast_where_it_is_not_the_outputs_error() -> None:
    stream = io.StringIO()
    with TextDisplay(stream) as display:
        display.show({"event": "starting"})
        display.show(STARTED)
        display.show(STARTED | {"error_dim": 96, "source": "head_input"})
    plain, other = stream.getvalue().splitlines()[::2]
    assert plain == "2 blocks, one Ray actor each; 1,000 parameters, 1 number per error; 1,000 steps"
    assert ", 96 numbers per error of the head's input; " in other


def test_texts_are_shown_as_they_are() -> None:
    text = "model.py:100: UserWarning, 127.0.0.1:1234: refused :x: [b]"
    assert text in "\n".join(shown({"event": "warning", "message": text}))


def test_a_recovery_is_a_line_when_it_begins_and_one_when_it_is_done() -> None:
    assert shown(RECOVERING, RECOVERED) == [
        "block 1 lost its process (killed by signal 9); rejoin at step 1,412 …",
        "goes on from step 1,412 after 4.2 s; block 1 lacks 7 steps",
    ]


def test_a_number_that_is_not_finite_is_shown_though_its_event_travelled_as_json() -> None:
    evaluated = {"event": "evaluated", "step": 3, "test_loss": None, "test_accuracy": 0.5}
    alignment = {"event": "alignment", "blocks": [{"block": 0, "angle_degrees": None}]}
    assert shown(evaluated, alignment) == [
        "test at step 3: loss nan, accuracy 50.00 %",
        "angle between update and true gradient: block 0 nan°",
    ]


@pytest.mark.parametrize(
    ("missed", "lacking"),
    [
        ({}, ""),
        ({"0": 0}, ""),
        ({"0": 1, "2": 1200}, "; block 0 lacks 1 step; block 2 lacks 1,200 steps"),
    ],
)
def test_only_blocks_that_lack_steps_are_named(missed: dict[str, int], lacking: str) -> None:
    assert shown(RECOVERED | {"missed": missed}) == [f"goes on from step 1,412 after 4.2 s{lacking}"]


def test_a_checkpoint_that_failed_is_shown_once() -> None:
    message = "no room for the checkpoint of step 5"
    events = [
        {"event": "warning", "message": message},
        {"event": "checkpoint_failed", "step": 5, "message": message},
    ]
    assert shown(*events) == [f"warning: {message}"]


def test_programs_get_the_events_as_they_are() -> None:
    stream = io.StringIO()
    events = [RECOVERING, RECOVERED, {"event": "checkpoint_failed", "step": 5, "message": "no room"}]
    with JsonDisplay(stream) as display:
        for event in events:
            display.show(event)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == events


PROGRESS: dict[str, Any] = {
    "event": "progress",
    "step": 11400,
    "steps": 12000,
    "epoch": 12,
    "loss": 0.1234,
    "accuracy": 0.981,
    "samples_per_second": 12345.6,
    "eta_seconds": 754.0,
}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "11,400/12,000  epoch 12  loss 0.1234  accuracy  98.1 %  12,346/s  12:34 left"),
        (70, "11,400/12,000  epoch 12  loss 0.1234  accuracy  98.1 %  12:34 left"),
        (50, "11,400/12,000  loss 0.1234  12:34 left"),
        (30, "11,400/12,000  loss 0.1234"),
        (20, "11,400/12,000"),
    ],
)
def test_a_narrow_terminal_shows_the_numbers_that_matter_most(width: int, line: str) -> None:
    assert fitted(numbers_of(PROGRESS), width) == line


class Terminal(io.StringIO):
    """A stream that shows what is written to it to a person."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [30, 40, 50, 60, 80, 120, 200])
def test_no_line_on_a_terminal_is_longer_than_it_or_ends_within_a_word(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    angles = [{"block": block, "angle_degrees": 70.0} for block in range(6)]
    events = [STARTED, PROGRESS, RECOVERING, {"event": "alignment", "step": 5, "blocks": angles}]
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with TextDisplay(stream) as display:
            for event in ({"event": "starting"}, *events):
                display.show(event)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, said)) <= width
    words = file.getvalue().split()
    words = [word for word in words if word not in set(joined(numbers_of(PROGRESS)).split()) | {"step"}]
    assert set(words) <= set(" ".join(said).split())


@given(st.text("ab /-", max_size=80), st.integers(5, 40))
def test_wrapping_keeps_every_word_whole(text: str, width: int) -> None:
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or " " not in line.strip() for line in lines)


@pytest.mark.parametrize(
    ("stream", "environment", "bar"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_progress_is_a_bar_on_a_terminal_that_can_show_one_and_lines_elsewhere(
    stream: type[io.StringIO], environment: dict[str, str], bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = stream()
    with TextDisplay(shown) as display:
        for event in ({"event": "starting"}, STARTED, PROGRESS):
            display.show(event)
    assert ("\x1b[2K" in shown.getvalue()) is bar
    assert (f"step {joined(numbers_of(PROGRESS))}" in shown.getvalue()) is not bar


def test_numbers_of_the_validation_split_are_not_called_those_of_the_test_split() -> None:
    evaluated = {"event": "evaluated", "step": 3, "test_loss": 1.0, "test_accuracy": 0.5}
    finished = evaluated | {"event": "finished", "steps": 3, "seconds": 1.0, "samples_per_second": 2.0}
    stream = io.StringIO()
    with TextDisplay(stream) as display:
        display.show({"event": "starting"})
        display.show(STARTED | {"evaluated_split": "validation"})
        display.show(evaluated)
        display.show(finished)
    assert stream.getvalue().splitlines()[-2:] == [
        "validation at step 3: loss 1.0000, accuracy 50.00 %",
        "finished: validation accuracy 50.00 %, validation loss 1.0000 after 3 steps in 0:01 (2 samples/s)",
    ]
