"""Jobs and their events in one SQLite file."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowdimfa.errors import InputError
from services.coordinator.jobs import ENDS, TRANSITIONS, Event, Job, JobState, Submission
from services.coordinator.rows import JOB_COLUMNS, SCHEMA, SCHEMA_VERSION, columns_of, job_of, progress_of
from services.coordinator.store import (
    JobEvent,
    JobFilter,
    KeyConflictError,
    QueueFullError,
    TransitionError,
    UnknownJobError,
)

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""For identifiers that people read aloud: without l, o, 0 and 1."""


class SqliteJobStore:
    """A `JobStore` in a file.

    Parameters
    ----------
    path
        Of the file, which is made where there is none.
    storage
        Where jobs get their run directories.
    max_queued
        Jobs that may wait at a time.

    Raises
    ------
    InputError
        The file isn't such a store, another coordinator uses it, or it can't be written.
    """

    def __init__(self, path: Path, storage: Path, max_queued: int = 10_000) -> None:
        self._path, self._storage, self._max_queued = path, storage, max_queued
        self._mutex = threading.RLock()
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"job store {path}", "another coordinator that uses it", "one coordinator for each --state"
            ) from None
        except OSError as error:
            raise InputError(
                f"job store {path}", f"no place to write ({error})", "a writable --state"
            ) from error
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            self._lock.release()
            raise InputError(
                f"job store {path}", f"a file that isn't one ({error})", "a store of this version"
            ) from error
        except InputError:
            self._lock.release()
            raise

    def _open(self) -> sqlite3.Connection:
        # Transactions are ours: Python's own would begin none before a read.
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # what a client was told must survive the machine, not only us
        db.execute("PRAGMA foreign_keys=ON")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            db.close()
            raise InputError(
                f"job store {self._path}",
                f"version {version} of its format",
                f"version {SCHEMA_VERSION}",
                "Give another --state, or the release that wrote it.",
            )
        return db

    def create(self, submission: Submission, cpus: float, gpus: float) -> tuple[Job, bool]:
        """Put a job into the queue, unless its client key was used before."""
        digest = _digest(submission)
        with self._transaction():
            known = self._db.execute(
                "SELECT id, digest FROM jobs WHERE owner = ? AND client_key = ? AND client_key != ''",
                (submission.owner, submission.client_key),
            ).fetchone()
            if known is not None:
                if known["digest"] != digest:
                    raise KeyConflictError(
                        f"client key {submission.client_key!r} belongs to job {known['id']}, which was submitted with "
                        "another specification, name or files; use another key"
                    )
                return self.get(known["id"]), False
            waiting = self._count(JobState.queued)
            if waiting >= self._max_queued:
                raise QueueFullError(
                    f"{waiting} jobs are queued, the most that this service takes; try again when some have run"
                )
            job_id, now = self._new_id(submission.name), time.time()
            self._db.execute(
                "INSERT INTO jobs (id, name, owner, client_key, digest, specification, files, state, detail, created,"
                " run_dir, cpus, gpus) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?)",
                (
                    job_id,
                    submission.name,
                    submission.owner,
                    submission.client_key,
                    digest,
                    submission.specification,
                    json.dumps(submission.files),
                    JobState.queued,
                    now,
                    str(self._storage / job_id),
                    cpus,
                    gpus,
                ),
            )
            self._add_events(job_id, [_state_event(JobState.queued, "", 0, now)])
            return self.get(job_id), True

    def get(self, job_id: str) -> Job:
        """Return a job."""
        return job_of(self._row(job_id))

    def submission(self, job_id: str) -> Submission:
        """Return what was submitted."""
        self._row(job_id)
        row = self._read("SELECT * FROM jobs WHERE id = ?", (job_id,))[0]
        return Submission(
            row["name"], row["owner"], row["specification"], json.loads(row["files"]), row["client_key"]
        )

    def page(
        self, which: JobFilter, page_size: int, before: int | None = None
    ) -> tuple[list[Job], int | None]:
        """Return a page of jobs, the newest first."""
        conditions: list[str] = ["1"]
        values: list[str | int] = []
        if which.states:
            conditions.append(f"state IN ({_marks(which.states)})")
            values += sorted(which.states)
        if which.owner:
            conditions.append("owner = ?")
            values.append(which.owner)
        if which.name_prefix:
            conditions.append("substr(name, 1, ?) = ?")
            values += [len(which.name_prefix), which.name_prefix]
        if before is not None:
            conditions.append("number < ?")
            values.append(before)
        rows = self._read(
            f"SELECT {JOB_COLUMNS} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?",
            (*values, page_size + 1),
        )
        page = rows[:page_size]
        return [job_of(row) for row in page], page[-1]["number"] if len(rows) > page_size else None

    def in_states(self, states: Collection[JobState]) -> list[Job]:
        """Return all jobs in some states, the oldest submission first."""
        rows = self._read(
            f"SELECT {JOB_COLUMNS} FROM jobs WHERE state IN ({_marks(states)}) ORDER BY number",
            tuple(sorted(states)),
        )
        return [job_of(row) for row in rows]

    def queued(self, cpus: float, gpus: float, *, fitting: bool, limit: int) -> list[Job]:
        """Return the oldest queued jobs that a cluster of a size could ever run, or those that it couldn't."""
        condition = "cpus <= ? AND gpus <= ?" if fitting else "NOT (cpus <= ? AND gpus <= ?)"
        rows = self._read(
            f"SELECT {JOB_COLUMNS} FROM jobs WHERE state = ? AND {condition} ORDER BY number LIMIT ?",
            (JobState.queued, cpus, gpus, limit),
        )
        return [job_of(row) for row in rows]

    def count_by_state(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        counted = {
            row["state"]: row["n"]
            for row in self._read("SELECT state, count(*) AS n FROM jobs GROUP BY state", ())
        }
        return {state: counted.get(state, 0) for state in JobState}

    def count_failed(self) -> dict[str, int]:
        """Return how many failed jobs have an error of each code."""
        rows = self._read(
            "SELECT json_extract(error, '$.code') AS code, count(*) AS n FROM jobs WHERE state = ? GROUP BY code",
            (JobState.failed,),
        )
        return {str(row["code"]): row["n"] for row in rows}

    def queued_before(self, job_id: str) -> int:
        """Return how many queued jobs were submitted before one."""
        row = self._row(job_id)
        found = self._read(
            "SELECT count(*) AS n FROM jobs WHERE state = ? AND number < ?", (JobState.queued, row["number"])
        )
        return int(found[0]["n"])

    def transition(self, job_id: str, to: JobState, detail: str, **changes: Any) -> Job:
        """Change a job's state, with the event that says so."""
        with self._transaction():
            job = self.get(job_id)
            if to not in TRANSITIONS[job.state]:
                raise TransitionError(f"job {job_id} is {job.state} and can't become {to}")
            now = time.time()
            if to is JobState.starting:
                entered = {"attempt": job.attempt + 1, "started": now, "stop_requested": ""}
                changes = entered | {"ended": None, "error": None} | changes
            elif to in ENDS:
                changes = {"ended": now} | changes
            changed = self.update(job_id, state=to, detail=detail, **changes)
            self._add_events(job_id, [_state_event(to, detail, changed.attempt, now)])
            return self.get(job_id)

    def describe(self, job_id: str, detail: str) -> Job:
        """Say more of the state that a job is in, with an event; nothing happens if that is known."""
        with self._transaction():
            job = self.get(job_id)
            if job.detail == detail:
                return job
            self._add_events(job_id, [_state_event(job.state, detail, job.attempt, time.time())])
            return self.update(job_id, detail=detail)

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change fields of a job, without an event."""
        columns = columns_of(changes)
        with self._transaction():
            self._row(job_id)
            if columns:
                settings = ", ".join(f"{name} = ?" for name in columns)
                self._db.execute(f"UPDATE jobs SET {settings} WHERE id = ?", (*columns.values(), job_id))
            return self.get(job_id)

    def append(self, job_id: str, events: Sequence[Event], log_position: int) -> Job:
        """Take in what a run logged, with the position in its log."""
        with self._transaction():
            self._row(job_id)
            self._add_events(job_id, events)
            return self.update(job_id, log_position=log_position, **progress_of(events))

    def events(self, job_id: str, after: int, limit: int) -> list[JobEvent]:
        """Return a job's events with sequences above ``after``."""
        self._row(job_id)
        rows = self._read(
            "SELECT sequence, event FROM events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (job_id, after, limit),
        )
        return [JobEvent(row["sequence"], json.loads(row["event"])) for row in rows]

    def close(self) -> None:
        """Close the file and let another coordinator have it."""
        with self._mutex:
            self._db.close()
            self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; one within another is part of it."""
        with self._mutex:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with self._mutex:
            return self._db.execute(query, tuple(values)).fetchall()

    def _row(self, job_id: str) -> sqlite3.Row:
        rows = self._read(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return rows[0]

    def _count(self, state: JobState) -> int:
        return int(self._read("SELECT count(*) AS n FROM jobs WHERE state = ?", (state,))[0]["n"])

    def _new_id(self, name: str) -> str:
        while True:
            job_id = f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(6))}"
            if not self._read("SELECT 1 FROM jobs WHERE id = ?", (job_id,)):
                return job_id

    def _add_events(self, job_id: str, events: Sequence[Event]) -> None:
        last = self._row(job_id)["last_sequence"]
        self._db.executemany(
            "INSERT INTO events (job, sequence, event) VALUES (?, ?, ?)",
            [(job_id, last + 1 + i, json.dumps(event, default=str)) for i, event in enumerate(events)],
        )
        self._db.execute("UPDATE jobs SET last_sequence = ? WHERE id = ?", (last + len(events), job_id))


def _state_event(state: JobState, detail: str, attempt: int, now: float) -> Event:
    return {"event": "state", "time": now, "state": str(state), "detail": detail, "attempt": attempt}


def _digest(submission: Submission) -> str:
    parts = [submission.name, submission.specification, submission.files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))
