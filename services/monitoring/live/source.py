"""What the live page needs of whoever has the jobs: the service, or ``lowdimfa train`` with its one run."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lowdimfa.services.monitoring.journal import Event

Fields = dict[str, Any]
"""A job as ``lowdimfa status --format json`` has it."""


class Visitor(NamedTuple):
    """Who asks: an ``authorization`` value, empty without one, and the address that the request came from."""

    authorization: str
    address: str


class Refusal(Exception):
    """A request that is answered with an error; the message is for people."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Look:
    """A job as it is now, and what happened to it since an earlier look.

    Attributes
    ----------
    job
        What is known of it besides what its events say.
    over
        Whether nothing of it runs.
    actions
        What the visitor may do with it now: ``stop`` or ``now`` (stop at once), ``resume``.
    targets
        File with the addresses of its processes' metrics.
    events
        Those after the position that was asked for.
    position
        After them.
    more
        Whether there are more already.
    """

    job: Fields
    over: bool
    actions: tuple[str, ...]
    targets: Path
    events: list[Event]
    position: int
    more: bool


class Source(Protocol):
    """Has jobs. Any thread may call; every method raises `Refusal` for a visitor who may not do that.

    Attributes
    ----------
    only
        Id of the one run that there is; empty for a source of many jobs.
    """

    only: str

    def enter(self, visitor: Visitor) -> str:
        """Return the name of a visitor; empty where everybody may come in."""

    def jobs(self, visitor: Visitor, page: str) -> tuple[list[Fields], str]:
        """Return a page of jobs, the newest first, and what names the next page; empty after the last."""

    def look(self, visitor: Visitor, job_id: str, after: int) -> Look:
        """Return what is new of a job after a position; 0 is its beginning."""

    def specification(self, visitor: Visitor, job_id: str) -> str:
        """Return a job's specification."""

    def logs(self, visitor: Visitor, job_id: str) -> dict[str, str]:
        """Return the last lines of a job's processes, by process."""

    def stop(self, visitor: Visitor, job_id: str, now: bool) -> None:
        """Ask a job to stop: after its step and a checkpoint, or at once."""

    def resume(self, visitor: Visitor, job_id: str) -> None:
        """Let a stopped or failed job go on."""
