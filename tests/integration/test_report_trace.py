"""The Chrome trace of a report, against the rules of its format: what Perfetto would refuse or draw wrongly."""

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_report import EPOCH, write_run

from lowdimfa.services.monitoring.report.page import write_report
from lowdimfa.services.monitoring.report.reading import read_run
from lowdimfa.services.monitoring.report.trace import write_trace
from lowdimfa.services.monitoring.timeline import TimelineWriter

Entry = dict[str, Any]


def trace_of(run_dir: Path) -> list[Entry]:
    path = run_dir / "trace.json"
    assert write_trace(read_run(run_dir), path)
    loaded = json.loads(path.read_text())
    assert loaded.keys() == {"displayTimeUnit", "traceEvents"}
    events: list[Entry] = loaded["traceEvents"]
    return events


def of(events: list[Entry], phase: str) -> list[Entry]:
    return [event for event in events if event["ph"] == phase]


def slices_at(events: list[Entry], flow_end: Entry) -> list[Entry]:
    """Return the slices of the flow end's thread in which it lies."""
    return [
        entry
        for entry in of(events, "X")
        if (entry["pid"], entry["tid"]) == (flow_end["pid"], flow_end["tid"])
        and entry["ts"] <= flow_end["ts"] <= entry["ts"] + entry["dur"]
    ]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    write_run(run_dir, microbatches=2)
    return trace_of(run_dir)


def test_every_event_has_what_its_phase_asks_for(events: list[Entry]) -> None:
    assert {event["ph"] for event in events} == {"M", "X", "s", "f", "i"}
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
    assert all(event["dur"] >= 0 for event in of(events, "X"))
    assert all(event["s"] == "g" for event in of(events, "i"))
    assert all(event["bp"] == "e" for event in of(events, "f"))
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert named == {(event["pid"], event["tid"]) for event in of(events, "X")}


def test_events_are_sorted_and_slices_of_a_thread_do_not_overlap(events: list[Entry]) -> None:
    assert all(before["ts"] <= after["ts"] for before, after in pairwise(events))
    threads: dict[tuple[int, int], list[Entry]] = defaultdict(list)
    for event in of(events, "X"):
        threads[event["pid"], event["tid"]].append(event)
    assert len(threads) == 8
    for slices in threads.values():
        assert all(round(a["ts"] + a["dur"], 1) <= b["ts"] for a, b in pairwise(slices))


def test_every_span_is_there_with_its_times_in_microseconds(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "timeline" / "block-0.jsonl")
    writer.record("forward", 7, 1, EPOCH + 1, EPOCH + 1.25)
    writer.record("wait", 8, 0, EPOCH + 1.25, EPOCH + 1.5, "window")
    writer.close()
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "started", "time": EPOCH}) + "\n")
    forward, wait = of(trace_of(tmp_path), "X")
    assert (forward["name"], forward["ts"], forward["dur"]) == ("forward", 1e6, 0.25e6)
    assert forward["args"] == {"step": 7, "micro-batch": 1}
    assert (wait["name"], wait["args"]) == ("wait: window", {"step": 8, "cause": "window"})


def test_flows_pair_up_and_bind_to_the_right_slices(events: list[Entry]) -> None:
    starts = {event["id"]: event for event in of(events, "s")}
    ends = {event["id"]: event for event in of(events, "f")}
    assert starts.keys() == ends.keys()
    assert len(starts) == len(of(events, "s")) == len(of(events, "f"))
    # 100 steps of 2 micro-batches: activations into 3 blocks, errors to 3 blocks, and one for each of 25 probes
    assert Counter(event["name"] for event in starts.values()) == {"activation": 600, "error": 675}
    for number in list(starts)[::50]:
        start, end = starts[number], ends[number]
        assert start["ts"] <= end["ts"]
        sent = next(entry for entry in slices_at(events, start) if entry["ts"] == start["ts"])
        used = next(entry for entry in slices_at(events, end) if entry["ts"] == end["ts"])
        assert sent["args"] == used["args"]
        if start["name"] == "activation":
            assert (sent["name"], used["name"]) == ("send", "forward")
            assert end["pid"] == start["pid"] + 1
        else:
            assert (sent["name"], start["pid"]) == ("publish", 4)
            assert used["name"] in ("update", "probe")


def test_a_step_that_was_run_again_gets_the_later_message(tmp_path: Path) -> None:
    def block(index: int, *spans: tuple[str, float]) -> None:
        writer = TimelineWriter(tmp_path / "timeline" / f"block-{index}.jsonl")
        for kind, start in spans:
            writer.record(kind, 5, 0, EPOCH + start, EPOCH + start + 0.1)
        writer.close()

    block(0, ("send", 1), ("send", 3))
    block(1, ("forward", 0.5), ("forward", 1.2), ("forward", 3.2))
    events = trace_of(tmp_path)
    assert [(a["ts"], b["ts"]) for a, b in zip(of(events, "s"), of(events, "f"), strict=True)] == [
        (0.5e6, 0.7e6),
        (2.5e6, 2.7e6),
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_page_links_the_trace_only_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=30)
    assert 'href="trace.json"' in write_report(tmp_path / "run").read_text()
    for path in (tmp_path / "run" / "timeline").iterdir():
        path.unlink()
    (tmp_path / "run" / "report" / "trace.json").unlink()
    assert "trace.json" not in write_report(tmp_path / "run").read_text()
    assert not (tmp_path / "run" / "report" / "trace.json").exists()
