"""The trainer as a Ray actor: one per job, so that a run doesn't hang on the terminal that started it."""

from __future__ import annotations

import threading
import traceback
from typing import Any

import ray

from lowdimfa.errors import LowdimfaError, StoppedError, unforeseen
from lowdimfa.services.monitoring.journal import Event, Journal, News, Position, Sink
from lowdimfa.services.recovery.deadlines import longest_silence
from lowdimfa.services.trainer.execute import execute
from lowdimfa.services.trainer.placement import free_places
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.stopping import StopRequest

Outcome = Event | LowdimfaError
"""What a run returns: its ``finished`` event, or the error that ended it."""


class TrainerHost:
    """Runs one request, once, and reads its journal to whoever follows: they may not have its disk."""

    def __init__(self) -> None:
        self._stop = StopRequest()
        self._outcome: Outcome | None = None
        self._journal: Journal | None = None
        self._begun = threading.Event()

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
            self._journal = request.journal()
            self._begun.set()
            return execute(request, self._journal, self._stop, own_process=True)
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
    def events(self, position: Position | None, patience: float) -> News:
        """Return what the run added to its journal after a position, waiting up to ``patience`` seconds for the first."""
        if not self._begun.wait(patience) or self._journal is None:
            return News([], position, False)
        return self._journal.after(position, patience)


TrainerActor: Any = ray.remote(
    num_cpus=0, concurrency_groups={"io": 4, "run": 1}, max_restarts=0, max_task_retries=0
)(TrainerHost)
"""The actor class; each of its methods is called with ``.remote``."""


def end(trainer: Any) -> None:
    """End a trainer that has no name, and whatever it still holds; one that is stopped, Ray kills after some seconds."""
    ray.kill(trainer)
    free_places(trainer._actor_id.hex())


def follow(trainer: Any, running: Any, sink: Sink, stop: StopRequest, liveness: float) -> Outcome:
    """Hand every event of a running job to a sink, pass a request to stop on, and return what the job returns.

    Raises
    ------
    RayError
        The trainer's process was lost; a `GetTimeoutError` if it gives no answer for longer than it may.
    """
    position: Position | None = None
    started = ended = asked = False
    while True:
        patience = longest_silence(liveness, started)
        if stop.made and not asked:
            asked = True
            ray.get(trainer.stop.remote(), timeout=patience)
        call = trainer.events.remote(position, 0.0 if ended else 0.5)
        events, position, more = ray.get(call, timeout=patience)
        for event in events:
            started = started or event["event"] == "started"
            sink(event)
        if ended and not more:
            return ray.get(running)  # type: ignore[no-any-return]
        done, _ = ray.wait([running], timeout=0)
        ended = bool(done)
