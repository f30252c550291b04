from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lowdimfa.services.coordinator import tail
from lowdimfa.services.coordinator.tail import read_tail


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "events.jsonl", 0) == ([], 0, False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=6), st.data())
def test_every_event_comes_once_however_the_writer_is_cut(tmp_path_factory, texts, data) -> None:
    log = tmp_path_factory.mktemp("run") / "events.jsonl"
    events = [{"event": "warning", "message": text} for text in texts]
    written = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
    seen, position, at = [], 0, 0
    while at < len(written):
        at = data.draw(st.integers(at + 1, len(written)))
        log.write_bytes(written[:at])
        new, position, _ = read_tail(log, position)
        seen += new
    assert seen == events
    assert position == len(written)


def test_a_tail_ends_with_the_kind_that_it_is_read_through(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    kinds = ["warning", "started", "progress", "started"]
    log.write_text("".join(json.dumps({"event": kind}) + "\n" for kind in kinds))
    parts, position, more = [], 0, True
    while more:
        events, position, more = read_tail(log, position, "started")
        parts.append([event["event"] for event in events])
    assert parts == [["warning", "started"], ["progress", "started"]]
    assert position == log.stat().st_size


def test_what_is_no_event_becomes_a_warning_with_its_place(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    lines = [
        b"not json",
        b"[1]",
        b'{"event": 3}',
        b'{"event": "state", "state": "finished"}',
        b"\xff\xfe",
        b"{" * 9999,
    ]
    log.write_bytes(b"\n".join(lines) + b'\n{"event": "warning", "message": "fine"}\n')
    events, _, _ = read_tail(log, 0)
    assert len(events) == len(lines) + 1
    assert all(event["event"] == "warning" for event in events)
    assert "byte 9" in events[1]["message"]
    assert events[-1]["message"] == "fine"


def test_long_logs_come_in_portions_and_a_line_without_end_holds_nothing_up(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tail, "MOST_BYTES", 100)
    log = tmp_path / "events.jsonl"
    line = json.dumps({"event": "warning", "message": "m" * 20}) + "\n"
    log.write_text(line * 5 + "x" * 150 + "\n" + line)
    seen, position, more = [], 0, True
    while more:
        events, position, more = read_tail(log, position)
        seen += events
    assert [event["message"] for event in seen if event["message"].startswith("m")] == ["m" * 20] * 6
    assert any("no line break in 100 bytes" in event["message"] for event in seen)
    assert position == log.stat().st_size


def test_a_log_that_became_shorter_is_reported_and_read_on(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text('{"event": "warning", "message": "new"}\n')
    (warning,), position, _ = read_tail(log, 1000)
    assert "became shorter" in warning["message"]
    assert position == log.stat().st_size
