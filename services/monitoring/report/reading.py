"""Read a run directory, as far as it goes: a run that is unfinished or failed lacks parts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowdimfa.errors import InputError
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.monitoring.line_file import objects_in
from lowdimfa.services.monitoring.timeline import CAUSES, KINDS

CATEGORIES = (*(kind for kind in KINDS if kind != "wait"), *(f"wait: {cause}" for cause in CAUSES))
"""What a block's time goes into: its work by kind, its waits by cause."""

BUSY = tuple(CATEGORIES.index(kind) for kind in ("forward", "update", "step", "probe"))
"""Indexes into `CATEGORIES` of what a block computes."""

_GOES_ON = ("started", "recovered")
"""Events from whose step on a run trains; all but the first take back what came after it."""

_CODES = {category: code for code, category in enumerate(CATEGORIES)}


@dataclass(frozen=True)
class Spans:
    """The timeline of one block as columns, one entry per span.

    Attributes
    ----------
    category
        Index into `CATEGORIES`.
    step, microbatch
        The ticket.
    start, end
        Unix seconds.
    """

    category: NDArray[np.int64]
    step: NDArray[np.int64]
    microbatch: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Spans:
        return Spans(
            self.category[chosen],
            self.step[chosen],
            self.microbatch[chosen],
            self.start[chosen],
            self.end[chosen],
        )


def by_step(events: Iterable[Event], event: str) -> dict[int, Event]:
    """Return the events of a kind in the order of their steps.

    Where the run went back to an earlier step, by a recovery or when it was resumed, what came after that step
    no longer counts.
    """
    lines: dict[int, Event] = {}
    for line in events:
        if line.get("event") in _GOES_ON:
            lines = {step: kept for step, kept in lines.items() if step <= line.get("step", step)}
        elif line.get("event") == event:
            lines[line["step"]] = line
    return dict(sorted(lines.items()))


@dataclass(frozen=True)
class Record:
    """What a run directory holds.

    Attributes
    ----------
    name
        Name of the directory.
    plan, result
        Contents of ``plan.json`` and ``result.json``; empty where the file is missing.
    events
        Lines of ``events.jsonl`` in their order.
    specification
        Text of ``spec.yaml``.
    spans
        Timeline by block, since the network is cut as it is now; of a block with replicas that of the first.
    notes
        Sentences on what is missing or could not be read.
    """

    name: str
    plan: dict[str, Any]
    result: dict[str, Any]
    events: list[dict[str, Any]]
    specification: str
    spans: dict[int, Spans]
    notes: list[str] = field(default_factory=list)

    def latest(self, *kinds: str) -> dict[str, Any]:
        """Return the last event of some kinds, or an empty one."""
        return next((line for line in reversed(self.events) if line.get("event") in kinds), {})

    @property
    def steps_planned(self) -> int | None:
        """Steps of the whole run, where they are known."""
        return self.latest("progress", "started").get("steps") or self.plan.get("steps")

    @property
    def steps_done(self) -> int | None:
        """Steps that were done when something was last heard, where that is known."""
        # A checkpoint is of an earlier step than training has come to once it is written.
        lines = (
            line for line in reversed(self.events) if not str(line.get("event")).startswith("checkpoint")
        )
        return next((line["step"] for line in lines if line.get("step") is not None), None)

    @property
    def split(self) -> str:
        """Of which samples evaluations are: ``test``, or ``validation``, those of training that were held out."""
        return next(
            (str(event["evaluated_split"]) for event in self.events if "evaluated_split" in event), "test"
        )

    def by_step(self, event: str) -> dict[int, dict[str, Any]]:
        """Return the events of a kind in the order of their steps: see `by_step`."""
        return by_step(self.events, event)

    def latest_step(self, event: str) -> dict[str, Any]:
        """Return the event of a kind of the last step whose work lasts, or an empty one."""
        lines = self.by_step(event)
        return lines[max(lines)] if lines else {}

    def lasting_spans(self) -> dict[int, Spans]:
        """Return the timeline without the work of steps that were taken back."""
        lasting = self.spans
        for line in [line for line in self.events if line.get("event") in _GOES_ON][1:]:
            first, since = line.get("step", np.inf), line.get("time", 0.0)
            lasting = {
                block: spans[(spans.step < first) | (spans.start >= since)]
                for block, spans in lasting.items()
            }
        return lasting

    def series(self, event: str, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the steps and values of one key of the events of a kind, without the absent values."""
        points = [
            (step, line[key]) for step, line in self.by_step(event).items() if line.get(key) is not None
        ]
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return steps, values


def read_run(run_dir: Path) -> Record:
    """Read what there is of a run.

    Raises
    ------
    InputError
        The path is no directory, or nothing in it belongs to a run.
    """
    parts = ("spec.yaml", "plan.json", "events.jsonl", "timeline")
    if not any((run_dir / part).exists() for part in parts):
        found = "a directory without any of these" if run_dir.is_dir() else "no directory"
        raise InputError(str(run_dir), found, f"a run directory with {', '.join(parts)}")
    notes: list[str] = []
    specification = run_dir / "spec.yaml"
    events = _read_events(run_dir, notes)
    finished = any(event.get("event") == "finished" for event in events)
    return Record(
        name=run_dir.resolve().name,
        plan=_read_object(run_dir / "plan.json", notes),
        # Only a finished run has a result.
        result=_read_object(run_dir / "result.json", notes if finished else []),
        events=events,
        specification=specification.read_text(encoding="utf-8") if specification.is_file() else "",
        spans=_since(_cut_since(events), _read_timeline(run_dir / "timeline", notes)),
        notes=notes,
    )


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except ValueError:
        notes.append(f"{path.name} is not complete.")
    else:
        if isinstance(content, dict):
            return content
        notes.append(f"{path.name} holds no JSON object.")
    return {}


def _read_events(run_dir: Path, notes: list[str]) -> list[Event]:
    journal = Journal(run_dir)
    if not journal.path.is_file():
        notes.append(f"{journal.path.name} is missing.")
    damaged: list[int] = []
    events = list(journal.read(damaged=damaged.append))
    _note_damage(journal.path, len(damaged), notes)
    return events


def _note_damage(path: Path, lines: int, notes: list[str]) -> None:
    """Note the lines of a file that could not be read, such as the half line of a killed process."""
    if lines:
        notes.append(f"{path.name}: {lines} incomplete line{'s' if lines > 1 else ''} skipped.")


def _read_timeline(folder: Path, notes: list[str]) -> dict[int, Spans]:
    spans = {}
    for path in folder.glob("block-*.jsonl"):
        if "-replica-" in path.stem:
            continue
        lines = [line for _, line in objects_in(path)]
        _note_damage(path, lines.count(None), notes)
        rows = [
            (_CODES[_category(line)], line["step"], line["microbatch"], line["start"], line["end"])
            for line in lines
            if line is not None
        ]
        if rows:
            block = int(path.stem.removeprefix("block-"))
            spans[block] = Spans(*(np.array(column) for column in zip(*rows, strict=True)))
    return dict(sorted(spans.items()))


def _cut_since(events: list[Event]) -> float:
    """Return when the run was last resumed with another cut or other replicas; earlier work says nothing of them."""
    parts = [event for event in events if event.get("event") == "started" and "time" in event]
    for before, after in reversed(list(pairwise(parts))):
        if any(
            before[key] != after[key] for key in ("boundaries", "replicas") if key in before and key in after
        ):
            return float(after["time"])
    return -np.inf


def _since(time: float, spans: dict[int, Spans]) -> dict[int, Spans]:
    """Return what was recorded since a time, of the blocks that recorded something since."""
    later = {block: own[own.start >= time] for block, own in spans.items()}
    return {block: own for block, own in later.items() if len(own.start)}


def _category(line: dict[str, Any]) -> str:
    return f"wait: {line['cause']}" if line["kind"] == "wait" else str(line["kind"])
