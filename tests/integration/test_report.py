import base64
import json
import shutil
import time
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.cli.app import app
from lowdimfa.services.monitoring.report.alignment import draw_alignment
from lowdimfa.services.monitoring.report.curves import draw_curves, smooth
from lowdimfa.services.monitoring.report.gantt import _draw_shares, choose_excerpt, time_shares
from lowdimfa.services.monitoring.report.page import collect_numbers, describe_state, write_report
from lowdimfa.services.monitoring.report.reading import CATEGORIES, Record, read_run
from lowdimfa.services.monitoring.timeline import TimelineWriter

EPOCH = 1_700_000_000.0


@dataclass
class SimulatedBlock:
    """One block of a pipeline that is simulated by always committing the task that can start first."""

    forward_seconds: float
    update_seconds: float
    timeline: TimelineWriter
    free: float = EPOCH
    arrivals: list[float] = field(default_factory=list)
    forwards: int = 0
    updates: int = 0


def simulate_timeline(
    folder: Path, steps: int, microbatches: int, blocks: int = 4, limit: int = 20_000
) -> None:
    """Write the spans of a synchronous pipeline, where updates come before forwards."""
    rng = np.random.default_rng(0)
    total, latency = steps * microbatches, 0.0006
    pipeline = [
        SimulatedBlock(
            0.004 - 0.0006 * k, 0.006 - 0.0008 * k, TimelineWriter(folder / f"block-{k}.jsonl", limit)
        )
        for k in range(blocks)
    ]
    pipeline[0].arrivals = [EPOCH] * total
    errors: list[float] = []

    def next_task(k: int) -> tuple[float, str, int, str] | None:
        block = pipeline[k]
        candidates = []
        if block.updates < min(block.forwards, len(errors)):
            ready = errors[block.updates]
            if ready <= block.free:
                return block.free, "update", block.updates, "error"
            candidates.append((ready, "update", block.updates, "error"))
        if (
            block.forwards < len(block.arrivals)
            and block.updates // microbatches >= block.forwards // microbatches
        ):
            ready = block.arrivals[block.forwards]
            candidates.append((max(block.free, ready), "forward", block.forwards, "activation"))
        return min(candidates, default=None)

    while any(block.updates < total for block in pipeline):
        tasks = [(task, k) for k in range(blocks) if (task := next_task(k)) is not None]
        (start, kind, index, cause), k = min(tasks)
        block, (step, microbatch) = pipeline[k], divmod(index, microbatches)
        if start > block.free:
            block.timeline.record("wait", step, microbatch, block.free, start, cause)
        seconds = block.forward_seconds if kind == "forward" else block.update_seconds
        end = start + seconds * rng.uniform(0.9, 1.15)
        block.timeline.record(kind, step, microbatch, start, end)
        if kind == "forward":
            block.forwards += 1
            block.timeline.record(
                "send" if k + 1 < blocks else "publish", step, microbatch, end, end + 0.0002
            )
            end += 0.0002
            if k + 1 < blocks:
                pipeline[k + 1].arrivals.append(end + latency)
            else:
                errors.append(end + latency)
        else:
            block.updates += 1
            if block.updates % microbatches == 0:
                block.timeline.record("step", step, microbatch, end, end + 0.0007)
                end += 0.0007
                if step % 4 == 3:
                    block.timeline.record("probe", step, microbatch, end, end + 0.0012)
                    end += 0.0012
                if step == steps // 2:
                    end += 0.8  # an evaluation: no work of the blocks
        block.free = end
    for block in pipeline:
        block.timeline.close()


def block_plan(index: int) -> dict[str, object]:
    return {
        "index": index,
        "name": str(index),
        "layers": [f"stage{index}.conv", f"stage{index}.norm", f"stage{index}.relu"],
        "parameters": 18_496 * (index + 1),
        "input_shape": [32 * index or 1, 28 >> index, 28 >> index],
        "output_shape": [32 * (index + 1), 14 >> index, 14 >> index],
        "tap": "normalised",
        "tap_features": 6272 >> index,
        "cost_share": 0.25,
    }


def simulate_events(steps: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    events: list[dict[str, object]] = [
        {
            "event": "started",
            "time": EPOCH,
            "engine": "ray",
            "blocks": 4,
            "parameters": 184_960,
            "steps": steps,
        }
    ]
    for step in range(10, steps + 1, 10):
        loss = 0.28 + 2.0 * np.exp(-step / 160) + rng.normal(0, 0.05)
        accuracy = float(np.clip(0.9 - 0.8 * np.exp(-step / 140) + rng.normal(0, 0.025), 0, 1))
        speed = 5200 + rng.normal(0, 160)
        progress = {
            "step": step,
            "steps": steps,
            "epoch": 3 * step / steps,
            "loss": loss,
            "accuracy": accuracy,
        }
        rates = {"samples": 128 * step, "samples_per_second": speed, "eta_seconds": 1.0}
        events.append({"event": "progress", "time": EPOCH + step / 40} | progress | rates)
        if step % 50 == 0:
            blocks = [
                {
                    "block": block,
                    "cosine": min(
                        1.0, (0.42 + 0.16 * block) * (1 - np.exp(-step / 200)) + 0.1 * (block == 3)
                    ),
                    "angle_degrees": 45.0,
                    "update_norm": 0.1,
                    "gradient_norm": 0.2,
                }
                for block in range(4)
            ]
            energy = 0.95 - 0.2 * np.exp(-step / 200)
            alignment = {"step": step, "blocks": blocks, "explained_error_energy": energy}
            events.append({"event": "alignment", "time": EPOCH + step / 40} | alignment)
        if step % (steps // 3) < 10:
            test = {"step": step, "test_loss": loss + 0.03, "test_accuracy": accuracy - 0.01}
            events.append({"event": "evaluated", "time": EPOCH + step / 40} | test)
    return events


def finished_event(steps: int) -> dict[str, object]:
    return {
        "event": "finished",
        "time": EPOCH + 40,
        "steps": steps,
        "samples": 128 * steps,
        "seconds": 36.4,
        "samples_per_second": 4933.2,
        "test_loss": 0.3312,
        "test_accuracy": 0.8814,
        "blocks": 4,
        "error_dim": 10,
        "broadcast_payload_bytes_per_sample": 40.0,
        "broadcast_wire_bytes_per_sample": 41.3,
        "parameters": 184_960,
    }


def write_run(run_dir: Path, steps: int = 1404, microbatches: int = 2) -> None:
    """Write the directory of a finished run; only the first hundred steps have a timeline."""
    run_dir.mkdir(parents=True)
    (run_dir / "spec.yaml").write_text(
        "model:\n  factory: 'zoo:<cnn & more>'\n  blocks: 4\ntrain:\n  epochs: 3\n"
    )
    plan = {
        "blocks": [block_plan(k) for k in range(4)],
        "error_dim": 10,
        "task_dim": 10,
        "parameters": 184_960,
    }
    (run_dir / "plan.json").write_text(json.dumps(plan))
    events = [*simulate_events(steps), finished_event(steps)]
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run_dir / "result.json").write_text(json.dumps(finished_event(steps)))
    simulate_timeline(run_dir / "timeline", 100, microbatches)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits-<b>1</b>"
    write_run(path)
    write_report(path)
    return path


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_pictures_are_inlined_and_written_beside_the_page(run_dir: Path) -> None:
    page = Page((run_dir / "report/index.html").read_text())
    pictures = [(run_dir / "report" / f"{name}.png") for name in ("curves", "alignment", "timeline")]
    inlined = [base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:")]
    assert inlined == [p.read_bytes() for p in pictures]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.width == 1500
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_page_shows_the_results_escapes_text_and_needs_no_script(run_dir: Path) -> None:
    text = (run_dir / "report/index.html").read_text()
    for shown in (
        "88.14%",
        "0.3312",
        "4,933",
        "40.0 / 41.3",
        "184,960",
        "zoo:&lt;cnn &amp; more&gt;",
        "Finished.",
    ):
        assert shown in text
    tags = Page(text).tags
    assert "details" in tags
    assert not {"b", "script", "link"} & set(tags)


@pytest.mark.parametrize("part", ["plan.json", "events.jsonl", "result.json", "spec.yaml", "timeline"])
def test_one_part_alone_makes_a_page_that_says_what_is_missing(
    run_dir: Path, tmp_path: Path, part: str
) -> None:
    if part == "result.json":
        with pytest.raises(InputError, match="run directory"):
            write_report(tmp_path)
        return
    copied = shutil.copytree if part == "timeline" else shutil.copy
    copied(run_dir / part, tmp_path / part)
    text = write_report(tmp_path).read_text()
    assert text.count("<img") == {"events.jsonl": 2, "timeline": 1}.get(part, 0)
    assert "is missing" in text or "recorded" in text


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        write_report(tmp_path / "absent")


@pytest.mark.usefixtures("undrawn")
def test_torn_last_lines_are_skipped_and_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    lines = [json.dumps(event) for event in simulate_events(600)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + '\n{"event":"progress","st')
    simulate_timeline(tmp_path / "timeline", 5, 1)
    with (tmp_path / "timeline/block-2.jsonl").open("a") as file:
        file.write('{"kind":"forw')
    text = write_report(tmp_path).read_text()
    assert "step 600 of 600" in text
    assert "events.jsonl: 1 incomplete line skipped" in text
    assert "block-2.jsonl: 1 incomplete line skipped" in text


@pytest.mark.usefixtures("undrawn")
def test_a_failure_is_shown_until_the_run_is_resumed(tmp_path: Path) -> None:
    events = [
        {"event": "started", "time": 1.0},
        {"event": "failed", "time": 2.0, "code": "not_finite", "message": "The loss is NaN."},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert "Failed (not_finite): The loss is NaN." in write_report(tmp_path).read_text()
    with path.open("a") as file:
        file.write(json.dumps({"event": "started", "time": 3.0}) + "\n")
    assert "Not finished" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"event": "started", "step": 600, "steps": 1404}, "Not finished: it goes on from step 600."),
        ({"event": "started", "step": 0, "steps": 1404}, "Not finished: no progress was recorded."),
        ({"event": "finished", "stopped_early": "good enough"}, "Finished early: good enough."),
        ({"event": "finished"}, "Finished."),
    ],
)
def test_the_state_says_where_a_run_goes_on_and_why_it_ended(
    last: dict[str, Any], words: str, run_dir: Path
) -> None:
    record = read_run(run_dir)
    end = last | {"time": EPOCH + 90}
    assert describe_state(replace(record, events=[*record.events, end])).endswith(f"UTC. {words}")


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_says_so_and_shows_what_is_known(tmp_path: Path) -> None:
    hint = "go on from step 600 with --resume --run-dir '/a run'"
    end = {
        "time": EPOCH + 20,
        "code": "stopped",
        "message": f"stopped; {hint}",
        "exit_code": 130,
        "step": 600,
    }
    before = [event for event in simulate_events(1404) if int(str(event.get("step", 0))) <= 600]
    events = [*before, {"event": "failed"} | end]
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "spec.yaml").write_text("model: {}\n")
    (tmp_path / "plan.json").write_text("{}")
    record = read_run(tmp_path)
    assert describe_state(record).endswith(f"UTC. Stopped after 600 of 1,404 steps: {hint}.")
    numbers = dict(collect_numbers(record))
    assert (numbers["Steps"], numbers["Seconds since the start"]) == ("600 of 1,404", "20.0")
    assert "–" not in "".join(numbers.values()) and "Seconds of training" not in numbers
    text = write_report(tmp_path).read_text()
    assert "Failed" not in text and "result.json" not in text
    with log.open("a") as file:  # a finished run has a result
        file.write(json.dumps(finished_event(1404)) + "\n")
    assert "result.json is missing." in read_run(tmp_path).notes


def test_the_share_of_the_errors_energy_is_that_of_the_last_measurement(run_dir: Path) -> None:
    record = read_run(run_dir)
    last = {**record.latest_step("alignment"), "step": 10**6, "explained_error_energy": None}
    picture = draw_alignment(replace(record, events=[*record.events, last]))
    assert picture is not None and "carried an unknown part of" in picture.caption


def test_a_run_that_evaluated_what_it_held_out_says_so(run_dir: Path) -> None:
    record = read_run(run_dir)
    assert "Test accuracy" in dict(collect_numbers(record))
    held_out = replace(record, events=[event | {"evaluated_split": "validation"} for event in record.events])
    numbers, picture = dict(collect_numbers(held_out)), draw_curves(held_out)
    assert "Validation accuracy" in numbers and not any("Test" in name for name in numbers)
    assert picture is not None and "of the validation split" in picture.caption
    assert "validation" in [text.get_text() for text in picture.figure.axes[0].get_legend().get_texts()]


def test_a_resumed_run_that_ends_shows_its_own_result_before_that_is_in_its_file(run_dir: Path) -> None:
    finished = read_run(run_dir)
    again = {"event": "started", "time": EPOCH + 90, "step": 1404, "steps": 2000, "blocks": 4}
    end = finished_event(2000) | {"time": EPOCH + 120, "test_accuracy": 0.95}
    numbers = dict(collect_numbers(replace(finished, events=[*finished.events, again, end])))
    assert (numbers["Test accuracy"], numbers["Steps"]) == ("95.00%", "2,000")


def test_a_resumed_run_that_was_stopped_does_not_show_the_result_of_its_earlier_part(run_dir: Path) -> None:
    finished = read_run(run_dir)
    again = {"event": "started", "time": EPOCH + 90, "step": 1404, "steps": 2000, "blocks": 4}
    stopped = {"event": "failed", "time": EPOCH + 99, "code": "stopped", "message": "stopped", "step": 1500}
    numbers = dict(collect_numbers(replace(finished, events=[*finished.events, again, stopped])))
    assert dict(collect_numbers(finished))["Test accuracy"] == "88.14%"
    assert numbers["Test accuracy"] != "88.14%" and numbers["Steps"] == "1,500 of 2,000"


def test_samples_and_tokens_per_second_are_of_the_same_time(tmp_path: Path) -> None:
    begun = [{"event": "started", "time": EPOCH, "step": 0, "steps": 4}]
    for step, rate in ((1, 100.0), (2, 100.0), (3, 400.0), (4, 400.0)):
        begun.append({"event": "progress", "time": EPOCH + step, "step": step, "steps": 4})
        begun[-1] |= {"samples_per_second": rate, "tokens_per_second": 8 * rate}
    end = {"event": "finished", "time": EPOCH + 9, "steps": 4, "samples_per_second": 160.0}
    for events, samples, tokens in ((begun, "400", "3,200"), ([*begun, end], "160", "1,280")):
        numbers = dict(collect_numbers(Record("run", {}, {}, events, "", {})))
        assert (numbers["Samples per second"], numbers["Tokens per second"]) == (samples, tokens)


def test_steps_that_were_run_again_count_once(tmp_path: Path) -> None:
    events = [
        {"event": "progress", "step": step, "loss": loss} for step, loss in [(1, 3.0), (2, 9.0), (2, 2.0)]
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    steps, loss = read_run(tmp_path).series("progress", "loss")
    assert steps.tolist() == [1, 2]
    assert loss.tolist() == [3, 2]


def test_smoothing_keeps_constants_and_lengths() -> None:
    for length in (1, 2, 39, 40, 200):
        np.testing.assert_allclose(smooth(np.full(length, 3.0)), np.full(length, 3.0))


def test_shares_are_at_most_the_whole_and_match_the_spans(run_dir: Path) -> None:
    for block in read_run(run_dir).spans.values():
        shares = time_shares(block)
        assert 0.5 < shares.sum() <= 1.0
        forward = CATEGORIES.index("forward")
        spent = (block.end - block.start)[block.category == forward].sum()
        assert shares[forward] == pytest.approx(spent / (block.end.max() - block.start.min()))


def test_the_bars_add_up(run_dir: Path) -> None:
    spans = read_run(run_dir).spans
    figure = Figure()
    axes = figure.subplots()
    _draw_shares(axes, np.array([time_shares(block) for block in spans.values()]))
    for row in range(len(spans)):
        bars = [bar for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - row) < 0.1]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(1.0)


def test_the_excerpt_lies_in_the_middle_without_the_evaluation(run_dir: Path) -> None:
    excerpt = choose_excerpt(read_run(run_dir).spans)
    assert excerpt is not None
    assert 30 <= excerpt.first <= excerpt.last <= 70
    assert excerpt.last - excerpt.first < 4
    assert excerpt.high - excerpt.low < 0.5


def test_a_big_timeline_is_read_and_drawn_quickly(tmp_path: Path) -> None:
    blocks, steps = 4, 2000
    for k in range(blocks):
        writer = TimelineWriter(tmp_path / "timeline" / f"block-{k}.jsonl", limit=25_000)
        for step in range(steps):
            writer.record("forward", step, 0, EPOCH + step, EPOCH + step + 0.3)
            writer.record("wait", step, 0, EPOCH + step + 0.3, EPOCH + step + 0.5, "error")
            writer.record("update", step, 0, EPOCH + step + 0.5, EPOCH + step + 1)
        writer.close()
    began = time.process_time()
    text = write_report(tmp_path).read_text()
    assert time.process_time() - began < 5
    assert "the busiest with 80%" in text


def test_a_timeline_with_a_gap_is_drawn_from_one_of_its_pieces(tmp_path: Path) -> None:
    """A process records only so many spans, and another one goes on with the run much later."""
    simulate_timeline(tmp_path / "timeline", steps=20, microbatches=4)
    for path in (tmp_path / "timeline").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        later = [{**line, **({"step": line["step"] + 1000} if "step" in line else {})} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines + later))
    spans = read_run(tmp_path).spans
    excerpt = choose_excerpt(spans)
    assert excerpt is not None and (excerpt.last < 20 or excerpt.first >= 1000)
    write_report(tmp_path)


def test_numbers_that_are_none_leave_a_report(tmp_path: Path) -> None:
    """A metric that is never finite, and a gradient that overflowed: JSON has null for both."""
    blocks = [
        {"block": block, "cosine": None, "angle_degrees": None, "update_norm": 1.0, "gradient_norm": None}
        for block in range(2)
    ]
    events = [
        {"event": "evaluated", "step": 1, "test_loss": 1.0, "test_accuracy": None, "metrics": {"f1": None}},
        {"event": "alignment", "step": 1, "blocks": blocks, "explained_error_energy": None},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = write_report(tmp_path).read_text()
    assert "no cosine was a finite number" in page and "none is a finite number" in page


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "started"}\n')
    (tmp_path / "report").write_text("a file")
    told = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(told.exception, ResourceError) and "the report can't be written" in str(told.exception)
