"""The tables of the job store, and what their rows mean."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from lowdimfa.services.coordinator.jobs import Event, Job, JobState
from lowdimfa.services.monitoring.line_file import to_json

SCHEMA_VERSION = 2
"""Of the tables; in the file as ``PRAGMA user_version``."""

SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    client_key TEXT NOT NULL,
    digest TEXT NOT NULL,
    specification TEXT NOT NULL,
    files TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    created REAL NOT NULL,
    queued REAL NOT NULL,
    run_dir TEXT NOT NULL,
    cpus REAL NOT NULL,
    gpus REAL NOT NULL,
    error TEXT,
    started REAL,
    ended REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0,
    loss REAL,
    test_accuracy REAL,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    stop_requested TEXT NOT NULL DEFAULT '',
    log_position INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, client_key) WHERE client_key != '';
CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id),
    sequence INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
"""
"""``number`` is the order of submission; ``events`` has each job's stream."""

_FIELDS = tuple(field.name for field in fields(Job))

JOB_COLUMNS = ", ".join(("number", *_FIELDS))
"""All but what was submitted, which may be large and which few readers want."""


def job_of(row: sqlite3.Row) -> Job:
    """Return the job that a row of ``jobs`` holds."""
    values = {name: row[name] for name in _FIELDS}
    values["state"] = JobState(values["state"])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    return Job(**values)


def columns_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns and their values for changed fields of a `Job`."""
    unknown = changes.keys() - set(_FIELDS)
    assert not unknown, f"a job has no {sorted(unknown)}"
    columns = dict(changes)
    if columns.get("error") is not None:
        columns["error"] = to_json(columns["error"])
    return columns


_TOLD: dict[str, dict[str, tuple[str, type]]] = {
    "started": {"step": ("step", int), "steps": ("steps", int)},
    "progress": {"step": ("step", int), "steps": ("steps", int), "loss": ("loss", float)},
    "evaluated": {"test_accuracy": ("test_accuracy", float)},
    "recovered": {"step": ("step", int)},
    "checkpoint": {},
    "finished": {"steps": ("step", int), "test_accuracy": ("test_accuracy", float)},
}
"""By event and field of it: which field of the job it tells, and of what type it must be."""


_LARGEST = sys.float_info.max
"""Beyond it are infinity, integers that no float holds, and with them what is not a number."""


def progress_of(events: Iterable[Event]) -> dict[str, Any]:
    """Return what a run's events say about how far it is; what isn't a number there says nothing."""
    told: dict[str, Any] = {}
    for event in events:
        for name, (field, kind) in _TOLD.get(str(event.get("event")), {}).items():
            value = event.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
                told[field] = min(max(kind(value), 0), 2**62) if kind is int else float(value)
    return told
