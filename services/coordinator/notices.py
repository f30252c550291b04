"""Telling those who watch a job that it has new events."""

from __future__ import annotations

import asyncio


class Notices:
    """Wakes the watchers of a job. Made in the event loop that they run in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, asyncio.Event] = {}
        self.closed = False

    def tell(self, job_id: str) -> None:
        """Note that a job's events grew; any thread may call."""
        self._loop.call_soon_threadsafe(self._wake, job_id)

    def close(self) -> None:
        """Wake everybody, for the last time; only in the loop's thread."""
        self.closed = True
        for job_id in list(self._waiting):
            self._wake(job_id)

    def subscribe(self, job_id: str) -> asyncio.Event:
        """Return what is set at the job's next event; ask before looking at the store, so that none is missed."""
        return self._waiting.setdefault(job_id, asyncio.Event())

    def _wake(self, job_id: str) -> None:
        event = self._waiting.pop(job_id, None)
        if event is not None:
            event.set()
