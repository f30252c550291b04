"""Where the coordinator reads what runs write: in their folders, or in copies of what an object store has of them."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from lowdimfa.errors import StorageError
from lowdimfa.services.coordinator.jobs import Job
from lowdimfa.services.monitoring.journal import EVENTS
from lowdimfa.services.run.disk import refusal
from lowdimfa.services.run.mirror import TARGETS
from lowdimfa.services.run.objects import KEY, Objects
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.trainer.run_dir import targets_file

LOOK_SECONDS = 1.0
"""Least pause between looks at a run in a store."""

PATIENCE = 1 / 12
"""Part of the liveness for which a store that does not answer is asked again, and then left alone: others wait."""

_LOG = re.compile(r"logs/[^/]+\.log")
_PIECE = 8 << 20  # bytes


class Copies:
    """Copies of what the store has of the events, logs and lists for Prometheus of jobs whose runs are at addresses.

    Files there only grow, so that what is new is fetched alone. A run in a folder is read where it is.

    Parameters
    ----------
    folder
        For the copies, of the coordinator alone; those of an earlier one are deleted.
    liveness
        From which the patience with a store derives.
    """

    def __init__(self, folder: Path, liveness: float) -> None:
        self._root, self._patience = folder, liveness * PATIENCE
        # Apart, so that events don't wait until a long log is here.
        self._locks: defaultdict[tuple[str, bool], threading.Lock] = defaultdict(threading.Lock)
        self._looked: dict[tuple[str, bool], float] = {}
        self._away, self._trouble = 0.0, ""
        shutil.rmtree(folder, ignore_errors=True)

    def folder(self, job: Job) -> Path:
        """Return where a job's events and logs can be read, as of the last `refresh`."""
        return self._root / job.id if is_address(job.run_dir) else Path(job.run_dir)

    def targets(self, job: Job) -> Path:
        """Return where the list of what Prometheus can scrape of a job is."""
        return self.folder(job) / TARGETS if is_address(job.run_dir) else targets_file(job.run_dir)

    def refresh(self, job: Job, *, logs: bool = False, now: bool = False) -> None:
        """Fetch what is new in the store: of the logs, or of all else.

        Parameters
        ----------
        job
            Whose.
        logs
            Which of both.
        now
            Whether it has to be as the store has it at this moment; otherwise that of a second ago will do.

        Raises
        ------
        StorageError
            The store doesn't answer, or didn't a moment ago, or somebody else is still at it.
        """
        if not is_address(job.run_dir):
            return
        lock = self._locks[job.id, logs]
        if not lock.acquire(timeout=self._patience):
            raise StorageError("what the run wrote is still being fetched for somebody else", setting=KEY)
        try:
            self._look(job, logs, now)
        finally:
            lock.release()

    def _look(self, job: Job, logs: bool, now: bool) -> None:
        if not now and time.monotonic() < self._looked.get((job.id, logs), 0.0) + LOOK_SECONDS:
            return
        if time.monotonic() < self._away:
            raise StorageError(self._trouble, setting=KEY)
        try:
            self._fetch(job, logs)
        except OSError as error:
            refused = refusal("what the run wrote can't be fetched", job.run_dir, error)
            self._away, self._trouble = time.monotonic() + self._patience, refused.message
            raise refused from error
        self._looked[job.id, logs] = time.monotonic()

    def _fetch(self, job: Job, logs: bool) -> None:
        objects, folder, grew = Objects(job.run_dir, self._patience), self.folder(job), False
        for name, size in sorted(objects.files().items()):  # events come before the list
            if _LOG.fullmatch(name) if logs else name == EVENTS:
                grew = _bring(objects, name, size, folder / name)
            elif not logs and name == TARGETS and (grew or not (folder / name).exists()):
                (folder / name).unlink(missing_ok=True)
                _bring(objects, name, size, folder / name)

    def send_events(self, job: Job) -> None:
        """Give the store the events of a run that nobody works on, after some were added to the copy.

        Raises
        ------
        StorageError
            It doesn't take them.
        """
        if is_address(job.run_dir):
            try:
                with Objects(job.run_dir, self._patience).writing(EVENTS) as file:
                    file.write((self.folder(job) / EVENTS).read_bytes())
            except OSError as error:
                raise refusal("an event can't be added to the run", job.run_dir, error) from error

    def forget_targets(self, job: Job) -> None:
        """Take a job off Prometheus' list, where its trainer had no chance to."""
        path = self.targets(job)
        with suppress(OSError):
            path.unlink()
            if is_address(job.run_dir):
                Objects(job.run_dir, self._patience).delete(TARGETS)

    def forget(self, job: Job) -> None:
        """Drop the copy of a job's events; the job has them all. That of its logs may be read by somebody."""
        if is_address(job.run_dir):
            with suppress(OSError):
                (self.folder(job) / EVENTS).unlink()


def _bring(objects: Objects, name: str, size: int, path: Path) -> bool:
    """Bring a copy up to so many bytes, and say whether it wasn't; one that is longer is of a course given up."""
    there = path.stat().st_size if path.exists() else 0
    if there == size:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if there > size:
            file.truncate(there := 0)
        while there < size:
            piece = objects.read(name, min(_PIECE, size - there), start=there)
            there += file.write(piece)
            if not piece:
                break  # replaced by a shorter one meanwhile
    return True
