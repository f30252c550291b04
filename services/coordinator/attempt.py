"""One attempt at a job: what its trainer is called and told, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowdimfa.errors import InputError, PeerError, StoppedError
from lowdimfa.services.coordinator.jobs import Event, Job, JobState, Submission
from lowdimfa.services.coordinator.store import JobStore
from lowdimfa.services.coordinator.unlinked import write_file
from lowdimfa.services.run.naming import named
from lowdimfa.services.run.storage import Place, below
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.services.spec.load import parse_text
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.stopping import stopped

LAST_EVENTS = 50
"""Among which a run's last one is: only notes about its state may come after it."""


def trainer_of(job: Job) -> str:
    """Return the name of the trainer of a job's current attempt."""
    return f"job-{job.id}-{job.attempt}"


@dataclass(frozen=True)
class RunRequests:
    """Makes the request of a job's next attempt.

    Attributes
    ----------
    storage
        Gets the run directories: a folder, or an address.
    metrics
        Replaces ``run.metrics`` of a specification that doesn't turn them off.
    """

    storage: Place
    metrics: Literal["loopback", "node"]

    def make(
        self, job: Job, submission: Submission, lost_at: float | None = None, *, ready: bool = False
    ) -> RunRequest:
        """Lay the user's files down and return what the trainer is to do.

        An earlier attempt goes on from its newest checkpoint; one that came to none begins anew.

        Parameters
        ----------
        job, submission
            What was submitted.
        lost_at
            When the loss of a trainer was noticed that this one makes up for, in Unix seconds.
        ready
            Whether this attempt's trainer is there, so that its directory was made ready and may be in use.
        """
        specification = parse_text(submission.specification, "the specification")
        run = specification.run.model_copy(
            update={
                "storage": str(self.storage),
                "metrics": "off" if specification.run.metrics == "off" else self.metrics,
            }
        )
        if not is_address(job.run_dir):
            Path(job.run_dir).mkdir(parents=True, exist_ok=True)
        first = RunRequest(
            specification=specification.model_copy(update={"run": run}).model_dump(),
            run_dir=job.run_dir,
            engine="ray",
            resume=False,
            user_code=_user_code(submission.files, job.run_dir),
            way_on=f"lowdimfa resume {job.id}",
        )
        return first.again(lost_at, ready=ready)


def _user_code(files: dict[str, str], run_dir: str) -> UserCode:
    """Lay the user's files down where all processes see them; where there is no such folder, they travel."""
    if not files:
        return UserCode()
    folder = below(run_dir, "code")
    if is_address(folder):
        return UserCode(folder, files)
    for name, text in files.items():
        try:
            write_file(Path(run_dir), Path("code", name), text)
        except (NotADirectoryError, IsADirectoryError) as error:
            found = f"{name!r}, and a file, folder or link in its way in {folder}"
            raise InputError("files", found, "each once, and no links") from error
    return UserCode(folder)


def outcome_in(store: JobStore, job: Job) -> Event | None:
    """Return the last word of a job's current attempt, if its log had one."""
    recent = store.events(job.id, max(0, job.last_sequence - LAST_EVENTS), LAST_EVENTS)
    for _, event in reversed(recent):
        if event["event"] in ("finished", "failed"):
            return event
        if event["event"] == "state" and event["state"] == JobState.starting:
            return None
    return None


def lost(store: JobStore, job: Job) -> Event:
    """Return the last word of a trainer that left none, or that was never made."""
    if job.stop_requested == "now":
        return {"event": "failed"} | StoppedError("stopped at once").as_event()
    if job.stop_requested and not _began(store, job):
        early = stopped(job.run_dir) if named(job.run_dir) else StoppedError("stopped before it began")
        return {"event": "failed"} | early.as_event()
    error = PeerError(
        f"the trainer of job {job.id} was lost after step {job.step}; 'lowdimfa resume {job.id}' goes on from its last "
        "checkpoint, if it has one"
    )
    return {"event": "failed"} | error.as_event()


def _began(store: JobStore, job: Job) -> bool:
    """Return whether a job's current attempt trained, so that its trainer's loss may have cost something."""
    recent = store.events(job.id, max(0, job.last_sequence - LAST_EVENTS), LAST_EVENTS)
    for _, event in reversed(recent):
        if event["event"] == "state" and event["state"] == JobState.starting:
            return False
        if event["event"] == "started":
            return True
    return True
