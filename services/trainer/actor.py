"""The trainer as a Ray actor: one per job, so that a run doesn't hang on the terminal that started it."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from lowdimfa.errors import LowdimfaError, StoppedError, unforeseen
from lowdimfa.services.trainer.events import Event
from lowdimfa.services.trainer.execute import RunRequest, execute
from lowdimfa.services.trainer.places import free_places
from lowdimfa.services.trainer.silence import longest_silence
from lowdimfa.services.trainer.stopping import StopRequest

KEPT_EVENTS = 10_000
"""Events that wait in the trainer for whoever follows it; a run that nobody follows must not fill the memory."""

Outcome = Event | LowdimfaError
"""What a run returns: its ``finished`` event, or the error that ended it."""


class TrainerHost:
    """Runs one request, once, and keeps its latest events for whoever watches."""

    def __init__(self) -> None:
        self._stop = StopRequest()
        self._outcome: Outcome | None = None
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._seen = 0
        self._changed = threading.Condition()

    @ray.method(concurrency_group="run")
    def fit(self, request: RunRequest) -> Outcome:
        """Run to the end; an error is returned, not raised, so that it crosses whole.

        Whoever calls again, such as a coordinator that came back, gets the same outcome: the group has one thread, so
        a second call waits for the first.
        """
        if self._outcome is None:
            self._outcome = self._run(request)
        return self._outcome

    def _run(self, request: RunRequest) -> Outcome:
        try:
            return execute(request, self._keep, self._stop, own_process=True)
        except StoppedError as error:
            return error
        except LowdimfaError as error:
            traceback.print_exception(error)
            return error.plain()
        except BaseException as error:  # even one that would end an actor, such as the user's `sys.exit`
            traceback.print_exception(error)
            return unforeseen(error, "the trainer failed")

    @ray.method(concurrency_group="io")
    def outcome(self) -> Event | None:
        """Return the ``finished`` or ``failed`` event once `fit` has its outcome; the run's log is closed by then."""
        outcome = self._outcome
        return {"event": "failed"} | outcome.as_event() if isinstance(outcome, LowdimfaError) else outcome

    @ray.method(concurrency_group="io")
    def stop(self) -> None:
        """Ask the run to write a checkpoint after the step that it is in, and to end; it may not have begun yet."""
        self._stop.make()

    @ray.method(concurrency_group="io")
    def events(self, cursor: int, patience: float) -> list[Event]:
        """Return the events from a position on, waiting up to ``patience`` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen > cursor, patience)
            return list(self._events)[min(0, cursor - self._seen) or len(self._events) :]

    def _keep(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._seen += 1
            self._changed.notify_all()


TrainerActor: Any = ray.remote(
    num_cpus=0, concurrency_groups={"io": 4, "run": 1}, max_restarts=0, max_task_retries=0
)(TrainerHost)
"""The actor class; each of its methods is called with ``.remote``."""


def end(trainer: Any) -> None:
    """End a trainer that has no name, and whatever it still holds; one that is stopped, Ray kills after some seconds."""
    ray.kill(trainer)
    free_places(trainer._actor_id.hex())


def follow(
    trainer: Any, running: Any, sink: Callable[[Event], None], stop: StopRequest, liveness: float
) -> Outcome:
    """Hand every event of a running job to a sink, pass a request to stop on, and return what the job returns.

    Raises
    ------
    RayError
        The trainer's process was lost; a `GetTimeoutError` if it gives no answer for longer than it may.
    """
    cursor = 0
    started = ended = asked = False
    while True:
        patience = longest_silence(liveness, started)
        if stop.made and not asked:
            asked = True
            ray.get(trainer.stop.remote(), timeout=patience)
        for event in ray.get(trainer.events.remote(cursor, 0.0 if ended else 0.5), timeout=patience):
            cursor += 1
            started = started or event["event"] == "started"
            sink(event)
        if ended:
            return ray.get(running)  # type: ignore[no-any-return]
        done, _ = ray.wait([running], timeout=0)
        ended = bool(done)
