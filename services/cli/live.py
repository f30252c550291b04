"""``lowdimfa train --live``: the live page of one run, on this machine, for as long as it goes."""

from __future__ import annotations

import hmac
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet

from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.monitoring.live.app import LivePage
from lowdimfa.services.monitoring.live.sessions import Sessions
from lowdimfa.services.monitoring.live.source import Fields, Look, Refusal, Visitor
from lowdimfa.services.monitoring.pages import Pages
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.spec import to_yaml
from lowdimfa.services.trainer.run_dir import targets_file
from lowdimfa.services.trainer.signals import Stopping

if TYPE_CHECKING:
    from lowdimfa.services.trainer.api import DecoupledTrainer

HOST = "127.0.0.1"

LAST_LOOK_SECONDS = 3.0
"""For which a page that is open can still ask how the run ended."""

MOST_UNREAD = 1000
"""Events of a run that nobody looks at, before they are gathered into curves."""

LOG_BYTES = 64 << 10
"""Of the end of each process's log."""


class RunJob:
    """One run: see `Source`.

    What happens comes from whoever trains, wherever its disk is. The page alone reads it; what it has read is forgotten.

    Parameters
    ----------
    trainer
        Of the run.
    stopping
        Ends it as Ctrl-C does.
    """

    only = "run"

    def __init__(self, trainer: DecoupledTrainer, stopping: Stopping) -> None:
        self.token = secrets.token_urlsafe(32)
        self._trainer, self._stopping = trainer, stopping
        self._specification = to_yaml(trainer.specification)
        self._began = time.time()
        self._looked_at = -LAST_LOOK_SECONDS
        self._over = False
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._read = 0
        if trainer.request.resume:  # what is there otherwise, of a deleted run at this address, goes
            self._events.extend(Journal(self._run_dir).read())

    @property
    def visitor(self) -> Visitor:
        """Who may see the run."""
        return Visitor(f"Bearer {self.token}", "")

    @property
    def _run_dir(self) -> Path:
        return work_dir(
            self._trainer.request.run_dir
        )  # another one until the run begins, if its name is taken

    def tell(self, event: Event) -> int:
        """Take in an event; return how many nobody has read yet."""
        with self._lock:
            self._events.append(event)
            return len(self._events)

    def enter(self, visitor: Visitor) -> str:
        """Let in who has the token."""
        if not hmac.compare_digest(visitor.authorization.encode(), self.visitor.authorization.encode()):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "open the address that 'lowdimfa train --live' printed")
        return "this run"

    def jobs(self, visitor: Visitor, page: str) -> tuple[list[Fields], str]:
        """Return nothing: there is no list."""
        self.enter(visitor)
        return [], ""

    def look(self, visitor: Visitor, job_id: str, after: int) -> Look:
        """Return what is new of the run; positions count events."""
        run_dir, over = self._found(visitor, job_id), self._over
        with self._lock:
            for _ in range(after - self._read):
                self._events.popleft()
            self._read = after
            events = list(self._events)
        job: Fields = {"id": self.only, "name": run_dir.name, "created": self._began}
        if self._stopping.asked and not over:
            job["state"] = "stopping"
        if visitor.address:  # a browser
            self._looked_at = time.monotonic()
        if over:
            self._told.set()
        return Look(
            job=job,
            over=over,
            actions=() if over else ("now",) if self._stopping.asked else ("stop",),
            targets=targets_file(self._trainer.request.run_dir),
            events=events,
            position=after + len(events),
            more=False,
        )

    def specification(self, visitor: Visitor, job_id: str) -> str:
        """Return the specification, with all overrides."""
        self._found(visitor, job_id)
        return self._specification

    def logs(self, visitor: Visitor, job_id: str) -> dict[str, str]:
        """Return the ends of the logs of the run's processes."""
        paths = (self._found(visitor, job_id) / "logs").glob("*.log")
        return {path.stem: _end_of(path) for path in sorted(paths)}

    def stop(self, visitor: Visitor, job_id: str, now: bool) -> None:
        """Do what Ctrl-C does, or a second one."""
        self._found(visitor, job_id)
        if self._over:
            raise Refusal(HTTPStatus.CONFLICT, "the run is over")
        (self._stopping.now if now else self._stopping.ask)()

    def resume(self, visitor: Visitor, job_id: str) -> None:
        """Refuse: that is for the command line."""
        self._found(visitor, job_id)
        raise Refusal(HTTPStatus.CONFLICT, "'lowdimfa train --resume' goes on with a run")

    def end(self) -> None:
        """Note that the run is over, and let pages that are open hear of it."""
        self._over = True
        if time.monotonic() - self._looked_at < LAST_LOOK_SECONDS:
            self._told.wait(LAST_LOOK_SECONDS)

    def _found(self, visitor: Visitor, job_id: str) -> Path:
        self.enter(visitor)
        if job_id != self.only:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such run")
        return self._run_dir


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
        return file.read().decode("utf-8", "replace")


class LiveRun:
    """The page of one run.

    Attributes
    ----------
    address
        With the token where no server sees it; empty while the page isn't up.
    """

    def __init__(self) -> None:
        self.address = ""
        self._job: RunJob | None = None
        self._page: LivePage | None = None

    def tell(self, event: Event) -> None:
        """Take in an event of the run, while the page is up."""
        if self._job is not None and self._page is not None and self._job.tell(event) > MOST_UNREAD:
            self._page.watching.news(self._job.visitor, self._job.only, None)

    @contextmanager
    def served(self, trainer: DecoupledTrainer, stopping: Stopping) -> Iterator[None]:
        """Serve the page while the run goes, and until browsers that show it know how it ended.

        Raises
        ------
        ResourceError
            No port can be had.
        """
        job = RunJob(trainer, stopping)
        pages = Pages(HOST, 0, self._answer, what="the live page", settings="no --live")
        self._page = LivePage(job, Sessions(Fernet.generate_key(), secure=False, port=pages.port))
        self._job, self.address = job, f"http://{pages.address}/login#{job.token}"
        pages.start()
        try:
            yield
        finally:
            job.end()
            pages.close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        assert self._page is not None
        return self._page(environ, start_response)
