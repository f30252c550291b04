"""What the report makes of runs that lost something on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowdimfa.services.monitoring.live.course import Course
from lowdimfa.services.monitoring.report.curves import draw_curves
from lowdimfa.services.monitoring.report.gantt import choose_excerpt, time_shares
from lowdimfa.services.monitoring.report.page import collect_numbers, write_report
from lowdimfa.services.monitoring.report.reading import CATEGORIES, read_run
from lowdimfa.services.monitoring.report.recoveries import find_recoveries, recovery_cells
from lowdimfa.services.monitoring.timeline import TimelineWriter

EPOCH = 1_700_000_000.0
LOST = EPOCH + 60
BACK = EPOCH + 90


def progress(time: float, step: int, loss: float) -> dict[str, Any]:
    return {
        "event": "progress", "time": time, "step": step, "steps": 100, "loss": loss, "accuracy": 0.5,
        "samples_per_second": 10.0,
    }  # fmt: skip


def started(time: float, step: int) -> dict[str, Any]:
    return {"event": "started", "time": time, "step": step, "steps": 100, "blocks": 2}


def recovering(
    time: float, step: int, policy: str = "restart", blocks: tuple[int, ...] = (1,)
) -> dict[str, Any]:
    reason = "block 1 lost its process (<killed> by signal 9)"
    return {
        "event": "recovering", "time": time, "policy": policy, "blocks": list(blocks), "reason": reason,
        "step": step, "recovery": 1,
    }  # fmt: skip


def recovered(time: float, step: int, policy: str = "restart", **missed: int) -> dict[str, Any]:
    lacking = {block.removeprefix("block_"): steps for block, steps in missed.items()}
    return {
        "event": "recovered", "time": time, "policy": policy, "blocks": [1], "step": step, "missed": lacking,
        "seconds": 29.96,
    }  # fmt: skip


def write_events(run_dir: Path, events: list[dict[str, Any]]) -> None:
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def write_timeline(run_dir: Path, blocks: int = 2) -> None:
    """Write what blocks did that run a step a second, were lost after step 60 and went on from step 40."""
    for block in range(blocks):
        writer = TimelineWriter(run_dir / "timeline" / f"block-{block}.jsonl")
        first_part = [(step, EPOCH + step) for step in range(60)]
        second_part = [(step, BACK + step - 40) for step in range(40, 100)]
        for step, time in first_part + second_part:
            writer.record("forward", step, 0, time, time + 0.4)
            writer.record("update", step, 0, time + 0.4, time + 0.9)
        writer.close()


RESTARTED = [
    started(EPOCH, 0),
    *(progress(EPOCH + step, step, 1.0) for step in range(10, 61, 10)),
    recovering(LOST, 60),
    recovered(BACK, 40),
    progress(BACK + 10, 50, 2.0),
]


@pytest.mark.parametrize("back", [recovered(BACK, 40), started(BACK, 40)])
def test_what_came_after_the_step_that_a_run_went_back_to_no_longer_counts(
    tmp_path: Path, back: dict[str, Any]
) -> None:
    write_events(tmp_path, [*RESTARTED[:-2], back, RESTARTED[-1]])
    steps, loss = read_run(tmp_path).series("progress", "loss")
    assert steps.tolist() == [10, 20, 30, 40, 50]  # and no 60, which it may never reach again
    assert loss.tolist() == [1, 1, 1, 1, 2]


def test_the_excerpt_of_the_timeline_shows_steps_that_lasted(tmp_path: Path) -> None:
    write_events(tmp_path, RESTARTED)
    write_timeline(tmp_path)
    record = read_run(tmp_path)
    for block, spans in record.lasting_spans().items():
        assert np.unique(spans.step).tolist() == list(range(100))
        assert (spans.start[spans.step >= 40] >= BACK).all()
        assert len(spans.step) == 200 < len(record.spans[block].step)
    excerpt = choose_excerpt(record.lasting_spans())
    assert excerpt is not None
    assert excerpt.high - excerpt.low < 5  # not the time from its first to its second run


def test_what_blocks_did_under_another_cut_is_left_out(tmp_path: Path) -> None:
    now = {"boundaries": ["2"], "replicas": [1, 1]}
    events = [
        started(EPOCH, 0) | {"boundaries": ["1", "2"], "replicas": [1, 1, 1]},
        started(BACK, 40) | now,
        started(BACK + 30, 70) | now,
    ]
    write_events(tmp_path, events)
    write_timeline(tmp_path, blocks=2)
    old = TimelineWriter(tmp_path / "timeline" / "block-2.jsonl")
    old.record("forward", 0, 0, EPOCH, EPOCH + 1)
    old.close()
    record = read_run(tmp_path)
    assert list(record.spans) == [0, 1]
    assert all((spans.start >= BACK).all() and len(spans.step) == 120 for spans in record.spans.values())
    write_events(tmp_path, [event | now for event in events])
    assert [len(spans.step) for spans in read_run(tmp_path).spans.values()] == [240, 240, 1]


def test_shares_of_time_leave_out_what_nobody_recorded(tmp_path: Path) -> None:
    """A block recorded 10 s of work in two processes, each until it was full; a night lies between them."""
    writer = TimelineWriter(tmp_path / "timeline" / "block-0.jsonl")
    night = 36_000
    for first, began in ((0, EPOCH), (500, EPOCH + night), (900, EPOCH + 2 * night)):
        for step in range(10):
            writer.record("forward", first + step, 0, began + step, began + step + 0.5)
    writer.close()
    events = [started(EPOCH, 0), started(EPOCH + night, 500)]  # the third part is of a block that came back
    write_events(tmp_path, events)
    shares = time_shares(read_run(tmp_path).spans[0], [event["time"] for event in events])
    assert shares[CATEGORIES.index("forward")] == pytest.approx(0.5, rel=0.06)


def test_what_was_evaluated_in_a_course_that_was_given_up_is_not_the_latest(tmp_path: Path) -> None:
    def evaluated(step: int, accuracy: float) -> dict[str, Any]:
        return {
            "event": "evaluated", "time": EPOCH + step, "step": step, "test_loss": 1.0, "test_accuracy": accuracy,
        }  # fmt: skip

    events = [*RESTARTED[:-3], evaluated(30, 0.3), evaluated(60, 0.6), *RESTARTED[-3:]]
    write_events(tmp_path, events)
    record = read_run(tmp_path)
    assert dict(collect_numbers(record))["Test accuracy"] == "30.00%"
    picture = draw_curves(record)
    assert picture is not None and "after step 30" in picture.caption
    course = Course()
    course.take(events, len(events))
    assert "test_accuracy" not in course.told


def test_a_recovery_has_ended_when_the_run_is_resumed_later(tmp_path: Path) -> None:
    later = started(BACK + 86_400, 100)
    for end in ([], [{"event": "finished", "time": BACK + 60, "steps": 100}]):
        (found,) = find_recoveries(
            [started(EPOCH, 0), recovering(LOST, 60), recovered(BACK, 40), *end, later]
        )
        assert found.ended["seconds"] == 29.96 and found.ended["step"] == 40


def test_a_recovery_is_a_row_with_what_it_cost(tmp_path: Path) -> None:
    events = [
        started(EPOCH, 0),
        recovering(LOST, 1412, "rejoin", ()),
        recovering(LOST + 1, 1412, "rejoin", (0, 1)),
        recovered(BACK, 1412, "rejoin", block_0=0, block_1=7),
        recovering(BACK + 1, 1500),
    ]
    write_events(tmp_path, events)
    rows = [recovery_cells(recovery) for recovery in find_recoveries(read_run(tmp_path).events)]
    assert [row[1:3] for row in rows] == [["rejoin", "–"], ["rejoin", "0, 1"], ["restart", "1"]]
    assert [row[4:] for row in rows] == [
        ["1,412 → –", "–", "–"],  # overtaken by the next
        ["1,412 → 1,412", "30.0", "block 1: 7"],
        ["1,500 → –", "–", "–"],
    ]
    assert rows[0][0] == "2023-11-14 22:14:20"


def test_a_recovery_before_training_began_ends_with_the_start(tmp_path: Path) -> None:
    events = [
        recovering(LOST, 0),
        started(LOST + 3, 0),
        recovering(LOST + 10, 5),
        {"event": "failed", "time": LOST + 11, "code": "peer_lost", "message": "block 1"},
        started(LOST + 5000, 4),  # resumed by somebody
    ]
    write_events(tmp_path, events)
    rows = [recovery_cells(recovery) for recovery in find_recoveries(read_run(tmp_path).events)]
    assert [row[4:6] for row in rows] == [["0 → 0", "3.0"], ["5 → –", "–"]]


def test_the_page_lists_recoveries_and_failed_checkpoints_and_its_pictures_mark_them(tmp_path: Path) -> None:
    failed = {"event": "checkpoint_failed", "time": BACK, "step": 50, "message": "no room for 5 MB"}
    write_events(tmp_path, [*RESTARTED, failed])
    write_timeline(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "<h2>Recoveries</h2>" in text
    assert "block 1 lost its process (&lt;killed&gt; by signal 9)" in text and "60 → 40" in text
    assert "1 checkpoint could not be written, the last after step 50: no room for 5 MB" in text
    marked = {name: (tmp_path / "report" / f"{name}.png").read_bytes() for name in ("curves", "timeline")}
    write_events(tmp_path, [event for event in RESTARTED if not event["event"].startswith("recover")])
    text = write_report(tmp_path).read_text()
    assert "<h2>Recoveries</h2>" not in text and "could not be written" not in text
    assert all((tmp_path / "report" / f"{name}.png").read_bytes() != data for name, data in marked.items())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("last", "words"),
    [
        (recovering(LOST, 60), "Not finished: a recovery began at step 60."),
        (recovered(BACK, 40), "Not finished: it went on from step 40 after a recovery."),
    ],
)
def test_an_unfinished_run_says_that_it_recovers(tmp_path: Path, last: dict[str, Any], words: str) -> None:
    write_events(tmp_path, [*RESTARTED[:-3], last])
    assert words in write_report(tmp_path).read_text()
