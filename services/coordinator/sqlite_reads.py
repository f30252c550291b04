"""What is read of the job store's file."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Sequence
from typing import Any

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.jobs import Job, JobState, Submission
from lowdimfa.services.coordinator.rows import JOB_COLUMNS, job_of
from lowdimfa.services.coordinator.store import JobEvent, JobFilter, UnknownJobError


class SqliteReads:
    """The readers of a `JobStore`; whoever derives from it opens the file."""

    _db: sqlite3.Connection
    _mutex: threading.RLock

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

    def count_failed(self, codes: Collection[str]) -> dict[str, int]:
        """Return how many failed jobs have an error of each of some codes; all others count as internal."""
        # A job's own code may have written the error: it may be no JSON, and have any code.
        code = "CASE WHEN json_valid(error) THEN json_extract(error, '$.code') END"
        rows = self._read(
            f"SELECT CASE WHEN {code} IN ({_marks(codes)}) THEN {code} ELSE ? END AS code, count(*) AS n"
            " FROM jobs WHERE state = ? GROUP BY 1",
            (*codes, LowdimfaError.code, JobState.failed),
        )
        return {row["code"]: row["n"] for row in rows}

    def queued_before(self, job_id: str) -> int:
        """Return how many queued jobs were submitted before one."""
        row = self._row(job_id)
        found = self._read(
            "SELECT count(*) AS n FROM jobs WHERE state = ? AND number < ?", (JobState.queued, row["number"])
        )
        return int(found[0]["n"])

    def events(self, job_id: str, after: int, limit: int) -> list[JobEvent]:
        """Return a job's events with sequences above ``after``."""
        self._row(job_id)
        rows = self._read(
            "SELECT sequence, event FROM events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (job_id, after, limit),
        )
        return [JobEvent(row["sequence"], json.loads(row["event"])) for row in rows]

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


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))
