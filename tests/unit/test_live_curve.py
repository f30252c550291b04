"""Curves of the live page: small however long a run is, with every extreme, and right after a run went back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.monitoring.live.course import Course
from lowdimfa.services.monitoring.live.curve import BUCKETS, Curve
from lowdimfa.services.monitoring.live.texts import ABSENT, done, shown
from lowdimfa.services.monitoring.live.watching import _past

VALUES = st.floats(-1e6, 1e6)
ANYTHING = st.sampled_from(
    [None, True, -1, 3, 2.5, 1e308, 10**400, float("nan"), float("inf"), "x", [1], {"a": {}}]
)
KINDS = ("started", "progress", "evaluated", "recovering", "recovered", "failed", "finished", "state", "x")
NAMES = (
    "step",
    "steps",
    "loss",
    "time",
    "seconds",
    "blocks",
    "reason",
    "policy",
    "missed",
    "state",
    "message",
)


@given(st.lists(VALUES, min_size=1, max_size=60), st.integers(1, 200))
def test_a_long_curve_is_small_and_keeps_extremes_and_the_newest_point(some: list[float], times: int) -> None:
    values = [value + turn for turn in range(times) for value in some]
    curve = Curve()
    for step, value in enumerate(values):
        curve.add(step, value)
    steps, kept = curve.points()
    assert len(steps) <= 2 * BUCKETS and steps == sorted(set(steps))
    assert kept == [values[step] for step in steps]
    assert min(kept) == min(values) and max(kept) == max(values) and steps[-1] == len(values) - 1
    # No part of the run is thinned more than another.
    assert max((b - a for a, b in pairwise(steps)), default=0) <= 1 + 8 * len(values) / BUCKETS


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), VALUES), max_size=80))
def test_a_run_that_goes_back_takes_its_later_points_along(turns: list[tuple[bool, int, float]]) -> None:
    curve, expected = Curve(), {}
    for back, step, value in turns:
        expected = {old: kept for old, kept in expected.items() if old < step + back}
        if back:
            curve.cut(step)
        else:
            curve.add(step, value)
            expected[step] = value
    assert curve.points() == (list(expected), list(expected.values()))


def test_going_back_within_a_thinned_part_leaves_nothing_of_later_steps() -> None:
    curve = Curve()
    for step in range(10_000):
        curve.add(step, float(step % 7))
    for last in (9_999, 5_001, 4_998, 17, 0):
        curve.cut(last)
        steps, _ = curve.points()
        assert steps[-1] <= last and steps[-1] >= last - 40
    curve.add(1, 5.0)
    assert curve.points()[0][-1] == 1


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "3", [1]])
def test_what_is_no_number_is_not_drawn(value: Any) -> None:
    curve = Curve()
    curve.add(1, value)
    curve.add(value, 1.0)
    assert curve.points() == ([], [])


@given(
    st.lists(
        st.builds(
            lambda kind, fields: fields | {"event": kind},
            st.sampled_from(KINDS),
            st.dictionaries(st.sampled_from(NAMES), ANYTHING),
        ),
        max_size=8,
    )
)
def test_whatever_a_run_logs_the_page_has_something_to_show(events: list[dict[str, Any]]) -> None:
    course = Course()
    course.take(events, len(events))
    job = course.told | {"id": "job"}
    json.dumps([_past(course), shown(job), done(job)], allow_nan=False)


def test_a_course_says_how_far_a_run_is_and_what_was_lost() -> None:
    course = Course()
    recovering = {"policy": "restart", "blocks": [1], "reason": "block 1 was lost", "recovery": 1}
    course.take(
        [
            {"event": "started", "time": 0.0, "step": 0, "steps": 100, "blocks": 2},
            {"event": "progress", "time": 1.0, "step": 10, "steps": 100, "loss": 2.0, "accuracy": None},
            {"event": "progress", "time": 2.0, "step": 20, "steps": 100, "loss": 1.0, "accuracy": None},
            {"event": "recovering", "time": 3.0, "step": 21} | recovering,
        ],
        4,
    )
    assert (course.told["state"], done(course.told)) == ("running", 0.2)
    assert shown(course.told | {"id": "x"})["detail"] == "recovering: block 1 was lost"
    recovered = {"policy": "restart", "blocks": [1], "missed": {}, "seconds": 4.0}
    course.take([{"event": "recovered", "time": 7.0, "step": 10} | recovered], 5)
    assert course.curves["loss"].points() == ([10], [2.0]) and course.marks() == [10]
    assert course.recoveries() == [
        ["1970-01-01 00:00:03", "restart", "1", "block 1 was lost", "21 → 10", "4.0", "–"]
    ]
    course.take([{"event": "failed", "time": 9.0, "code": "stopped", "message": "stopped"}], 6)
    assert (course.told["state"], course.told["ended"], course.position) == ("stopped", 9.0, 6)


STARTED = {"event": "started", "time": 0.0, "blocks": 2, "step": 0, "steps": 100}


def test_a_number_that_is_none_any_more_is_not_shown_as_it_was() -> None:
    """Of a loss of 800 no number holds the perplexity, and nobody knows how long a run will take that stands still."""
    course = Course()
    good = {
        "event": "progress",
        "step": 1,
        "steps": 100,
        "loss": 3.0,
        "perplexity": 20.1,
        "eta_seconds": 99.0,
    }
    course.take([STARTED, good], 2)
    assert shown(course.told | {"id": "job"})["perplexity"] == "20.1"
    course.take([good | {"step": 2, "loss": 800.0, "perplexity": None, "eta_seconds": None}], 3)
    texts = shown(course.told | {"id": "job"})
    assert (texts["loss"], texts["perplexity"], texts["left"]) == ("800", ABSENT, ABSENT)


def test_a_run_that_a_callback_ended_has_not_done_all_its_steps() -> None:
    course = Course()
    course.take([STARTED, {"event": "finished", "time": 1.0, "steps": 60, "seconds": 1.0}], 2)
    assert shown(course.told | {"id": "job"})["steps"] == "60 of 100 steps (60%)"
