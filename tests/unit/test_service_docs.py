"""The picture of a job's life is the table that the store enforces."""

from __future__ import annotations

import re
from pathlib import Path

from lowdimfa.services.coordinator.jobs import ENDS, TRANSITIONS, JobState

PAGE = (Path(__file__).parents[2] / "docs/service.md").read_text("utf-8")
DIAGRAM = PAGE.split("```mermaid\nstateDiagram-v2\n")[1].split("```")[0]


def test_the_diagram_has_every_transition_and_no_other() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+): ", DIAGRAM, re.MULTILINE)
    allowed = [(str(state), str(after)) for state, afters in TRANSITIONS.items() for after in afters]
    assert sorted(drawn) == sorted(allowed)


def test_it_begins_in_the_queue_and_ends_where_nothing_follows() -> None:
    assert re.findall(r"^    \[\*\] --> (\w+)", DIAGRAM, re.MULTILINE) == [JobState.queued]
    final = {state for state in ENDS if not TRANSITIONS[state]}
    assert set(re.findall(r"^    (\w+) --> \[\*\]$", DIAGRAM, re.MULTILINE)) == final


def test_every_state_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(JobState)
