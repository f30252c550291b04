"""The trainer as a Ray actor: one per job, so that a run doesn't hang on the terminal that started it."""

from __future__ import annotations

import threading
from typing import Any

import ray

from lowdimfa.errors import LowdimfaError
from services.block.actor import guarded
from services.trainer.events import Event
from services.trainer.execute import RunRequest, execute


class TrainerHost:
    """Runs one request and keeps its events for whoever watches."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changed = threading.Condition()

    @ray.method(concurrency_group="run")
    def fit(self, request: RunRequest) -> Event | LowdimfaError:
        """Run to the end; a typed error is returned, not raised."""
        return guarded(lambda: execute(request, self._keep))

    @ray.method(concurrency_group="io")
    def events(self, cursor: int, patience: float) -> list[Event]:
        """Return the events from a position on, waiting up to ``patience`` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > cursor, patience)
            return self._events[cursor:]

    def _keep(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()


TrainerActor: Any = ray.remote(
    num_cpus=0, concurrency_groups={"io": 2, "run": 1}, max_restarts=0, max_task_retries=0
)(TrainerHost)
"""The actor class; each of its methods is called with ``.remote``."""


def follow(trainer: Any, running: Any, sink: Any) -> Event | LowdimfaError:
    """Hand every event of a running job to a sink, and return what the job returns."""
    cursor = 0
    ended = False
    while True:
        for event in ray.get(trainer.events.remote(cursor, 0.0 if ended else 0.5)):
            cursor += 1
            sink(event)
        if ended:
            return ray.get(running)  # type: ignore[no-any-return]
        done, _ = ray.wait([running], timeout=0)
        ended = bool(done)
