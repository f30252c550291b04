"""The journal of a run: whoever follows it gets each event once, in order, whatever the writer and its disk do."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from disks import file_limit
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.monitoring import journal as module
from lowdimfa.services.monitoring import line_file
from lowdimfa.services.monitoring.journal import Event, Journal, News, Position
from lowdimfa.services.trainer import actor
from lowdimfa.services.trainer.replacement import _Following
from lowdimfa.services.trainer.stopping import StopRequest

START = Position(0)


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Journal(tmp_path).after(START) == News([], START, False)
    assert list(Journal(tmp_path).read()) == []


@given(st.lists(st.text(max_size=8), max_size=6), st.data())
def test_every_event_comes_once_however_the_writer_is_cut(tmp_path_factory, texts, data) -> None:
    journal = Journal(tmp_path_factory.mktemp("run"))
    events = [{"event": "warning", "message": text} for text in texts]
    written = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
    seen, position, at = [], START, 0
    while at < len(written):
        at = data.draw(st.integers(at + 1, len(written)))
        journal.path.write_bytes(written[:at])
        new, position, _ = journal.after(position)
        seen += new
    assert seen == events
    assert position == Position(len(written))
    assert list(journal.read()) == events


def test_a_tail_ends_with_the_kind_that_it_is_read_through(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    kinds = ["warning", "started", "progress", "started"]
    log.write_text("".join(json.dumps({"event": kind}) + "\n" for kind in kinds))
    parts, position, more = [], START, True
    while more:
        events, position, more = Journal(tmp_path).after(position, through="started")
        parts.append([event["event"] for event in events])
    assert parts == [["warning", "started"], ["progress", "started"]]
    assert position == Position(log.stat().st_size)


def test_what_is_no_event_becomes_a_warning_with_its_place(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    lines = [
        b"not json",
        b"[1]",
        b'{"event": 3}',
        b'{"event": "state", "state": "finished"}',
        b"\xff\xfe",
        b"{" * 9999,
        b'{"event": "warning", "message": "\\\\ud800"}',
    ]
    log.write_bytes(b"\n".join(lines) + b'\n{"event": "warning", "message": "fine"}\n')
    events, _, _ = Journal(tmp_path).after(START)
    assert len(events) == len(lines) + 1
    assert all(event["event"] == "warning" for event in events)
    assert "byte 9" in events[1]["message"]
    assert events[-1]["message"] == "fine"


def test_long_logs_come_in_portions_and_a_line_without_end_holds_nothing_up(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    log = tmp_path / "events.jsonl"
    line = json.dumps({"event": "warning", "message": "m" * 20}) + "\n"
    log.write_text(line * 5 + "x" * 150 + "\n" + line)
    seen, position, more = [], START, True
    while more:
        events, position, more = Journal(tmp_path).after(position)
        seen += events
    assert [event["message"] for event in seen if event["message"].startswith("m")] == ["m" * 20] * 6
    assert any("no line break in 100 bytes" in event["message"] for event in seen)
    assert position == Position(log.stat().st_size)


@pytest.mark.parametrize("trap", ["named pipe", "link"])
def test_a_journal_that_is_no_file_is_neither_waited_for_nor_followed(tmp_path: Path, trap: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"event":"started","time":1.0}\n')
    journal = Journal(tmp_path / "run", follow=False)
    journal.path.parent.mkdir()
    os.mkfifo(journal.path) if trap == "named pipe" else journal.path.symlink_to(elsewhere)
    for read in (lambda: journal.after(Position(0)), lambda: list(journal.read()), journal.end, journal.open):
        with pytest.raises(OSError):
            read()
    assert elsewhere.read_text().count("\n") == 1


def test_a_log_that_became_shorter_is_reported_and_read_on(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text('{"event": "warning", "message": "new"}\n')
    (warning,), position, _ = Journal(tmp_path).after(Position(1000))
    assert "became shorter" in warning["message"]
    assert position == Position(log.stat().st_size)


def test_a_log_that_was_replaced_is_reported_and_read_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text(
        '{"event": "warning", "message": "of another run, and longer"}\n{"event": "started"}\n'
    )
    warning, event = journal.after(Position(20)).events
    assert "no event at byte 20" in warning["message"] and event == {"event": "started"}


def test_damaged_lines_are_named_to_who_reads(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text('{"event": "started"}\n[1]\n{"event": "finished"}\n{"event": "prog')
    damaged: list[int] = []
    assert [event["event"] for event in journal.read(damaged=damaged.append)] == ["started", "finished"]
    assert damaged == [21, 47]


def test_who_is_ahead_of_the_disk_is_told_nothing_twice(tmp_path: Path) -> None:
    """As whoever follows a trainer was told by it what its journal shows only later, or never."""
    journal = Journal(tmp_path)
    journal.path.write_text('{"event": "failed"}\n{"event": "half')  # of an earlier part of the run
    position = journal.end().past({"event": "started"}).past({"event": "progress"})
    for kind in ("started", "progress", "evaluated"):
        journal.emit(kind)
        assert [event["event"] for event in journal.after(position).events] == ["evaluated"] * (
            kind == "evaluated"
        )
    journal.close()


ROOM = 1 << 40
course = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1500) | st.just(ROOM), st.booleans()), max_size=25
)


@given(
    course=course, limit=st.sampled_from([300, 1000, 1 << 20]), earlier=st.sampled_from(["", "{}\n", '{"ev'])
)
def test_a_follower_gets_each_event_once_while_the_disk_fills_up(
    tmp_path_factory: pytest.TempPathFactory, course: list[tuple[int, int, bool]], limit: int, earlier: str
) -> None:
    journal = Journal(tmp_path_factory.mktemp("run"), limit=limit)
    journal.path.write_text(earlier)
    journal.open()
    count, seen, position = 0, [], None
    for events, room, looks in course:
        with file_limit(room):
            for _ in range(events):
                journal.emit("progress", step=count)
                count += 1
            if looks:
                new, position, more = journal.after(position)
                seen += new
                assert not more
                assert limit < 1 << 20 or steps(seen) == list(range(count))
    with file_limit(course[-1][1] if course else 0):
        journal.close()
    seen += journal.after(position).events
    given_up = sum(event.get("missing", 0) for event in seen)
    found = steps(seen)
    assert found == sorted(set(found)) and (found == list(range(count)) or 0 < count - len(found) <= given_up)


def steps(events: list[Event]) -> list[int]:
    return [event["step"] for event in events if event["event"] == "progress"]


def test_a_follower_far_behind_gets_every_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the calls of a trainer's actor, whose run is over before the first is answered."""
    count = 25_000

    def run(request: Any, journal: Journal, stop: StopRequest, own_process: bool) -> Event:
        journal.open()
        for step in range(count):
            journal.emit("progress", step=step)
        journal.close()
        return {"event": "finished"}

    monkeypatch.setattr(actor, "execute", run)
    monkeypatch.setattr(
        actor,
        "ray",
        SimpleNamespace(get=lambda answer, timeout=0.0: answer, wait=lambda running, timeout: (running, [])),
    )
    host = actor.TrainerHost()
    outcome = host.fit(SimpleNamespace(journal=lambda: Journal(tmp_path)))  # type: ignore[arg-type]
    trainer = SimpleNamespace(events=SimpleNamespace(remote=host.events))
    told: list[Event] = []
    assert actor.follow(trainer, outcome, told.append, StopRequest(), 30.0) == {"event": "finished"}
    assert steps(told) == list(range(count))


def test_who_waits_for_an_event_is_woken_by_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    news: list[News] = []
    follower = threading.Thread(target=lambda: news.append(journal.after(None, patience=60.0)))
    follower.start()
    while follower.is_alive():  # one event may come before the follower waits
        journal.emit("progress")
        follower.join(0.01)
    journal.close()
    assert news[0].events


def test_who_knows_some_of_the_events_given_up_is_told_of_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    following = _Following(tmp_path, told.append)
    journal, position, write = Journal(tmp_path, limit=400), None, os.write
    journal.open()

    def emit(*numbers: int) -> None:
        for number in numbers:
            journal.emit("progress", step=number)

    def follow() -> None:
        nonlocal position
        events, position, _ = journal.after(position)
        for event in events:
            following(event)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line_file.os, "write", full)
    emit(0, 1, 2)
    follow()
    emit(*range(3, 12))  # the oldest are given up, of which three are known
    follow()
    monkeypatch.setattr(line_file.os, "write", write)
    emit(12)
    follow()
    emit(13, 14, 15)  # told by nobody: the trainer is lost
    following.catch_up()
    journal.close()
    steps = [event["step"] for event in told if "step" in event]
    missing = sum(event.get("missing", 0) for event in told)
    assert steps[-3:] == [13, 14, 15]
    assert len(steps) == len(set(steps))
    assert missing in (16 - len(steps), 17 - len(steps))  # perhaps with the note that the disk is full
