"""Jobs and their events in one SQLite file."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowdimfa.errors import InputError
from lowdimfa.services.coordinator.jobs import ENDS, TRANSITIONS, Event, Job, JobState, Submission
from lowdimfa.services.coordinator.private import own_file, own_folder
from lowdimfa.services.coordinator.rows import SCHEMA, SCHEMA_VERSION, columns_of, progress_of
from lowdimfa.services.coordinator.sqlite_reads import SqliteReads
from lowdimfa.services.coordinator.store import (
    KeyConflictError,
    NotWrittenError,
    QueueFullError,
    TransitionError,
)
from lowdimfa.services.monitoring.line_file import to_json
from lowdimfa.services.run.storage import Place, below

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""For identifiers that people read aloud: without l, o, 0 and 1."""


class SqliteJobStore(SqliteReads):
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

    def __init__(self, path: Path, storage: Place, max_queued: int = 10_000) -> None:
        self._storage, self._max_queued = storage, max_queued
        self._mutex = threading.RLock()
        self._path = own_folder(path.parent, "--state") / path.name
        where = f"job store {self._path}"
        self._lock = FileLock(self._path.with_name(f"{path.name}.lock"))
        try:
            own_file(Path(self._lock.lock_file))
            self._lock.acquire(timeout=0)
            self._db = self._open()
        except Timeout:
            expected = "one coordinator for each --state"
            raise InputError(where, "another coordinator that uses it", expected) from None
        except BaseException as error:
            self._lock.release()
            if isinstance(
                error, OSError | sqlite3.OperationalError
            ):  # no place to write, or locked by a program
                found, expected = (
                    f"a file that can't be used ({error})",
                    "a writable one that no program has open",
                )
                raise InputError(where, found, expected) from error
            if isinstance(error, sqlite3.Error):
                raise InputError(
                    where, f"a file that isn't one ({error})", "a store of this version"
                ) from error
            raise

    def _open(self) -> sqlite3.Connection:
        own_file(self._path)
        for part in (
            "-wal",
            "-shm",
        ):  # a killed service leaves them; new ones get the rights of the file itself
            if (beside := self._path.with_name(self._path.name + part)).exists():
                own_file(beside)
        # Transactions are ours: Python's own would begin none before a read.
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Set a connection up, and make the tables where there are none."""
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # what a client was told must survive the machine, not only us
        db.execute("PRAGMA foreign_keys=ON")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise InputError(
                f"job store {self._path}",
                f"version {version} of its format",
                f"version {SCHEMA_VERSION}",
                "Give another --state, or the release that wrote it.",
            )

    def create(self, submission: Submission, cpus: float, gpus: float) -> tuple[Job, bool]:
        """Put a job into the queue, unless its client key was used before."""
        digest, job_id = _digest(submission), self._new_id(submission.name)
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
            now = time.time()
            self._db.execute(
                "INSERT INTO jobs (id, name, owner, client_key, digest, specification, files, state, detail, created,"
                " queued, run_dir, cpus, gpus) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?)",
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
                    now,
                    below(self._storage, job_id),
                    cpus,
                    gpus,
                ),
            )
            self._add_events(job_id, [_state_event(JobState.queued, "", 0, now)])
            return self.get(job_id), True

    def transition(
        self, job_id: str, to: JobState, detail: str, *, only_from: JobState | None = None, **changes: Any
    ) -> Job:
        """Change a job's state, with the event that says so."""
        with self._transaction():
            job = self.get(job_id)
            if to not in TRANSITIONS[job.state] or only_from not in (None, job.state):
                raise TransitionError(f"job {job_id} is {job.state} and can't become {to}")
            now = time.time()
            nothing: dict[str, Any] = {"started": None, "ended": None, "error": None}  # of the last attempt
            if to is JobState.starting:
                entered = {"attempt": job.attempt + 1, "started": now, "stop_requested": ""}
                changes = nothing | entered | changes
            elif to is JobState.queued:
                since = {} if job.state is JobState.starting else {"queued": now}  # then it waits on
                changes = nothing | since | changes
            elif to in ENDS:
                changes = {"ended": now} | changes
            changed = self.update(job_id, state=to, detail=detail, **changes)
            self._add_events(job_id, [_state_event(to, detail, changed.attempt, now)])
            return self.get(job_id)

    def describe(self, job_id: str, detail: str) -> Job:
        """Say what a queued job waits for, with an event; nothing happens if that is known, or to any other job."""
        with self._transaction():
            job = self.get(job_id)
            if job.detail == detail or job.state is not JobState.queued:
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
        """Take in what a run logged, with the position in its log; with its start a job that is starting runs."""
        with self._transaction():
            self._row(job_id)
            self._add_events(job_id, events)
            job = self.update(job_id, log_position=log_position, **progress_of(events))
            if job.state is JobState.starting and any(event["event"] == "started" for event in events):
                return self.transition(job_id, JobState.running, "")
            return job

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
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:  # some errors have ended it
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise NotWrittenError(
                        f"the service's job store can't be written now ({error}): nothing has changed; make room where "
                        "its --state is"
                    ) from error
                raise

    def _new_id(self, name: str) -> str:
        """Draw an identifier; not in a transaction, which would hold everybody up where the storage hangs.

        That two submissions draw the same at once is as good as impossible, and then the table refuses one.
        """
        while True:
            job_id = f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(6))}"
            # A run of an earlier store may still lie there, and is not this job's to go on with.
            taken = (
                self._read("SELECT 1 FROM jobs WHERE id = ?", (job_id,))
                or Path(below(self._storage, job_id)).exists()
            )
            if not taken:
                return job_id

    def _add_events(self, job_id: str, events: Sequence[Event]) -> None:
        last = self._row(job_id)["last_sequence"]
        self._db.executemany(
            "INSERT INTO events (job, sequence, event) VALUES (?, ?, ?)",
            [(job_id, last + 1 + i, to_json(event)) for i, event in enumerate(events)],
        )
        self._db.execute("UPDATE jobs SET last_sequence = ? WHERE id = ?", (last + len(events), job_id))


def _state_event(state: JobState, detail: str, attempt: int, now: float) -> Event:
    return {"event": "state", "time": now, "state": str(state), "detail": detail, "attempt": attempt}


def _digest(submission: Submission) -> str:
    parts = [submission.name, submission.specification, submission.files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
