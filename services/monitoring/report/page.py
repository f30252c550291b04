"""Put the report together: pictures as files, and one page that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader

from lowdimfa.errors import StoppedError
from lowdimfa.services.monitoring.report.alignment import draw_alignment
from lowdimfa.services.monitoring.report.balance import measure_balance
from lowdimfa.services.monitoring.report.curves import draw_curves
from lowdimfa.services.monitoring.report.gantt import draw_timeline
from lowdimfa.services.monitoring.report.measured import draw_metrics
from lowdimfa.services.monitoring.report.reading import Record, read_run
from lowdimfa.services.monitoring.report.recoveries import ABSENT, find_recoveries, recovery_cells
from lowdimfa.services.monitoring.report.style import Picture
from lowdimfa.services.monitoring.report.trace import write_trace

TRACE = "trace.json"
"""Name of the Chrome trace beside the page."""


class Section(NamedTuple):
    """One picture of the page, or the reason why there is none."""

    name: str
    title: str
    caption: str
    image: str


_PICTURES: tuple[tuple[str, str, Callable[[Record], Picture | None], str], ...] = (
    ("curves", "Learning curves", draw_curves, "No progress was recorded yet."),
    ("metrics", "Metrics", draw_metrics, ""),
    (
        "alignment",
        "Alignment with the true gradient",
        draw_alignment,
        "No alignment was recorded; run.alignment_every measures it.",
    ),
    (
        "timeline",
        "Timeline",
        draw_timeline,
        "There is no step that every block recorded; run.timeline: true records it where every block is an actor.",
    ),
)


_TESTED = ("test_loss", "test_accuracy", "test_perplexity", "test_bits_per_byte")


def write_report(run_dir: Path, last: dict[str, Any] | None = None) -> Path:
    """Write the report of a run into its folder ``report`` and return the page.

    A run may be unfinished or lack parts: the page says so. Pictures are also written beside the page, and the
    timeline as a Chrome trace.

    Parameters
    ----------
    run_dir
        Directory of the run.
    last
        Event with which it ends, while its log doesn't have it yet.

    Raises
    ------
    InputError
        The directory holds no run.
    OSError
        Nothing can be written there.
    """
    record = read_run(run_dir)
    record.events.extend([] if last is None else [last])
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    sections = []
    for name, title, draw, absent in _PICTURES:
        picture = draw(record)
        if picture is None and not absent:  # not every run has it
            continue
        if picture is None:
            sections.append(Section(name, title, absent, ""))
            continue
        png = picture.png()
        (folder / f"{name}.png").write_bytes(png)
        sections.append(Section(name, title, picture.caption, base64.b64encode(png).decode()))
    traced = write_trace(record, folder / TRACE)
    page = folder / "index.html"
    page.write_text(_render(record, sections, TRACE if traced else ""), encoding="utf-8")
    return page


def _render(record: Record, sections: list[Section], trace: str) -> str:
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html").render(
        name=record.name,
        state=describe_state(record),
        numbers=collect_numbers(record),
        blocks=[_describe_block(block) for block in record.plan.get("blocks", [])],
        sections=sections,
        trace=trace,
        balance=measure_balance(record),
        recoveries=[recovery_cells(recovery) for recovery in find_recoveries(record.events)],
        specification=record.specification,
        notes=[*record.notes, *_failed_checkpoints(record)],
    )


def describe_state(record: Record) -> str:
    """Say when the run was started last and how it ended, or how far it is."""
    started = record.latest("started")
    text = f"Started {datetime.fromtimestamp(started['time'], UTC):%d %B %Y, %H:%M} UTC. " if started else ""
    last = record.latest("started", "progress", "recovering", "recovered", "failed", "finished")
    match last.get("event"):
        case "finished":
            early = last.get("stopped_early")
            return f"{text}Finished{f' early: {early}' if early else ''}."
        case "failed" if last["code"] == StoppedError.code:
            return f"{text}{_stopped(record, last)}"
        case "failed":
            return f"{text}Failed ({last['code']}): {last['message']}"
        case "progress":
            return f"{text}Not finished: the last progress was step {last['step']} of {last['steps']}."
        case "recovering":
            return f"{text}Not finished: a recovery began at step {last['step']}."
        case "started" if last.get("step"):
            return f"{text}Not finished: it goes on from step {last['step']}."
        case "recovered":
            return f"{text}Not finished: it went on from step {last['step']} after a recovery."
        case _:
            return f"{text}Not finished: no progress was recorded."


def _stopped(record: Record, last: dict[str, Any]) -> str:
    """Say how far somebody let the run come, and how it goes on."""
    done, planned = record.steps_done, record.steps_planned
    far = "" if done is None else f" after {done:,}{f' of {planned:,}' if planned else ''} steps"
    way_on = last["message"].removeprefix("stopped").strip("; ")
    return f"Stopped{far}: {way_on}."


def _failed_checkpoints(record: Record) -> list[str]:
    """Return a sentence on the checkpoints that could not be written, if there were any."""
    failed = [event for event in record.events if event.get("event") == "checkpoint_failed"]
    if not failed:
        return []
    count = "1 checkpoint" if len(failed) == 1 else f"{len(failed)} checkpoints"
    last = failed[-1]
    return [f"{count} could not be written, the last after step {last['step']}: {last['message']}"]


def collect_numbers(record: Record) -> list[tuple[str, str]]:
    """Return names and texts of the numbers at the top, those that are known: of the end, else the latest ones."""
    started = record.latest("started")
    evaluated = record.latest_step("evaluated")
    # A run that was resumed and has not ended yet no longer has the result of its earlier part.
    under_way = record.latest("started", "finished").get("event") == "started"
    # At its end `result.json` is still that of the part before, if the run was resumed after it had finished.
    end = {} if under_way else record.result | record.latest("finished")
    known: dict[str, Any] = {
        **{key: started.get(key) for key in ("blocks", "error_dim", "parameters")},
        "steps": record.steps_done,
        "since": record.events[-1].get("time", 0.0) - started.get("time", 0.0) if under_way else None,
        **{key: evaluated.get(key) for key in _TESTED},
        **end,
        **_rates(record, end),
    }
    planned = record.steps_planned
    of = f" of {planned:,}" if under_way and planned else ""
    wire = end.get("broadcast_wire_bytes_per_sample")
    split = record.split.capitalize()
    texts = [
        (f"{split} accuracy", "test_accuracy", ".2%", ""),
        (f"{split} loss", "test_loss", ".4f", ""),
        (f"{split} perplexity", "test_perplexity", ",.2f", ""),
        (f"{split} bits per byte", "test_bits_per_byte", ".4f", ""),
        ("Steps", "steps", ",d", of),
        ("Samples per second", "samples_per_second", ",.0f", ""),
        ("Tokens per second", "tokens_per_second", ",.0f", ""),
        ("Seconds of training", "seconds", ",.1f", ""),
        ("Seconds since the start", "since", ",.1f", ""),
        ("Blocks", "blocks", "d", ""),
        ("Parameters", "parameters", ",d", ""),
        ("Error dimension", "error_dim", "d", ""),
        (
            "Broadcast bytes per sample, payload / wire",
            "broadcast_payload_bytes_per_sample",
            ",.1f",
            "" if wire is None else f" / {wire:,.1f}",
        ),
    ]
    return [
        (name, format(known[key], form) + more)
        for name, key, form, more in texts
        if known.get(key) is not None
    ]


def _rates(record: Record, end: dict[str, Any]) -> dict[str, float | None]:
    """Return samples and tokens per second: both of the whole run, if that has ended, else of the latest report."""
    rates = ("samples_per_second", "tokens_per_second")
    samples = end.get("samples_per_second")
    if samples is None:
        return {rate: record.latest("progress").get(rate) for rate in rates}
    # The end doesn't say how many tokens counted; the reports on the way do, of as many samples each.
    told = [[line.get(rate) for rate in rates] for line in record.by_step("progress").values()]
    each = [own_tokens / own_samples for own_samples, own_tokens in told if own_samples and own_tokens]
    return dict(zip(rates, (samples, samples * fmean(each) if each else None), strict=True))


def _shape(shape: list[int] | dict[str, list[int]]) -> str:
    """Return a shape, or those of a set by name; what comes from the data by name has none here."""
    if isinstance(shape, dict):
        return ", ".join(f"{name} {_shape(own)}" for name, own in shape.items()) or "data"
    return " × ".join(map(str, shape))


def _describe_block(block: dict[str, Any]) -> list[str]:
    """Return the cells of a block's row."""
    shapes = (_shape(block[key]) for key in ("input_shape", "output_shape"))
    tap = f"{block['tap']}, {block['tap_features']:,}" if block.get("tap") else ABSENT
    return [
        str(block["index"]),
        ", ".join(block["layers"]),
        f"{block['parameters']:,}",
        " → ".join(shapes),
        tap,
        f"{block['cost_share']:.0%}",
    ]
