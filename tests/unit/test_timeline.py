import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.monitoring.timeline import CAUSES, KINDS, TimelineWriter


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_documentation_names_every_kind_and_cause() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `timeline/block-<i>.jsonl`"))
    assert {name for name in (*KINDS, *CAUSES) if f"`{name}`" not in row} == set()


def test_spans_are_appended_as_json_lines_and_only_waits_have_a_cause(tmp_path: Path) -> None:
    path = tmp_path / "timeline/block-0.jsonl"
    writer = TimelineWriter(path)
    writer.record("forward", 3, 1, 10.0, 10.5)
    assert not path.exists()
    writer.flush()
    writer.record("wait", 3, 1, 10.5, 11.25, "error")
    writer.close()
    span = {"step": 3, "microbatch": 1}
    assert read(path) == [
        {"kind": "forward", **span, "start": 10.0, "end": 10.5},
        {"kind": "wait", **span, "start": 10.5, "end": 11.25, "cause": "error"},
    ]


@given(limit=st.integers(0, 20), count=st.integers(0, 40), every=st.integers(1, 10))
def test_the_limit_holds_over_all_flushes_and_the_rest_is_counted(
    tmp_path_factory, limit: int, count: int, every: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "block-0.jsonl"
    writer = TimelineWriter(path, limit)
    for step in range(count):
        writer.record("update", step, 0, step, step + 1)
        if step % every == 0:
            writer.flush()
    writer.close()
    steps = [span["step"] for span in read(path)] if path.exists() else []
    assert steps == list(range(min(limit, count)))
    assert writer.dropped == max(0, count - limit)


def test_half_a_line_left_by_a_killed_process_does_not_swallow_the_next_span(tmp_path: Path) -> None:
    path = tmp_path / "block-0.jsonl"
    path.write_text('{"kind":"forw')
    writer = TimelineWriter(path)
    writer.record("step", 7, 0, 1.0, 2.0)
    writer.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"kind":"forw'
    assert json.loads(whole)["step"] == 7
