"""What a person sees of a run in the terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from services.cli.display import JsonDisplay, TextDisplay

STARTED: dict[str, Any] = {
    "event": "started",
    "engine": "ray",
    "blocks": 2,
    "parameters": 1000,
    "error_dim": 1,
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


def test_a_recovery_is_a_line_when_it_begins_and_one_when_it_is_done() -> None:
    assert shown(RECOVERING, RECOVERED) == [
        "block 1 lost its process (killed by signal 9); rejoin at step 1,412 …",
        "goes on from step 1,412 after 4.2 s; block 1 lacks 7 steps",
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
