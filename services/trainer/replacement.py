"""A trainer whose process is lost or silent is replaced by a new one, as far as the specification allows."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil
from ray.cloudpickle import dumps
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from lowdimfa.callback import Callback
from lowdimfa.errors import InputError, LowdimfaError, PeerError, RecoveriesUsedUpError, in_words
from lowdimfa.services.monitoring.journal import EVENTS, Event, Journal, Sink
from lowdimfa.services.recovery.policy import End, GoOn, Rules, TrainerLost, decide, history_in
from lowdimfa.services.run.mirror import Mirror, fetch, work_dir
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.actor import Outcome, TrainerActor, end, follow
from lowdimfa.services.trainer.families import lives
from lowdimfa.services.trainer.request import RunRequest
from lowdimfa.services.trainer.run_dir import opened, targets_file
from lowdimfa.services.trainer.stopping import StopRequest, stopped

PAUSE_LOOK = 0.1
"""Seconds between looks at whether a pause is no longer wanted."""
END_SECONDS = 5.0
"""Longest wait for a killed trainer's process."""


def run_in_actor(request: RunRequest, sink: Sink, stop: StopRequest) -> Outcome:
    """Run a request in a trainer actor, and in a new one whenever its process is lost; return what the run returns.

    Raises
    ------
    PeerError
        The trainer was lost, and ``run.on_failure`` is ``fail`` or ``run.max_recoveries`` are used up.
    StoppedError
        The trainer was lost after somebody had asked the run to stop.
    InputError
        A callback can't travel to the trainer's process.
    """
    _require_portable(request.callbacks)
    specification = request.parsed()
    liveness = specification.run.liveness_seconds
    while True:
        following = _Following(request.run_dir, sink)
        trainer = TrainerActor.remote()
        try:
            return follow(trainer, trainer.fit.remote(request), following, stop, liveness)
        except RayTaskError:
            raise  # of its own making
        except RayError as error:  # an actor that died, or one that Ray killed for its memory
            lost_at, cause = time.time(), error
        finally:
            end(trainer)
            following.await_end()  # what is noted next is after all that it logged, and its replacement is alone
        following.catch_up()
        _recover(specification, following, stop, cause)
        request = request.again(lost_at, saved=following.saved)


def _require_portable(callbacks: Sequence[Callback]) -> None:
    for index, callback in enumerate(callbacks):
        try:
            dumps(callback)
        except Exception as error:  # whatever it holds may fail in any way
            raise InputError(
                f"callbacks[{index}]",
                f"a {type(callback).__name__} that can't be copied into the trainer's process ({in_words(error)})",
                "one that can be pickled",
                "Make what can't be copied, such as a connection or a thread, in 'started'.",
            ) from error


class _Following:
    """Hands a trainer's events on and, once it is lost, those that it logged but did not come to tell.

    Parameters
    ----------
    place
        Of the run.
    sink
        Gets the events.
    """

    def __init__(self, place: str, sink: Sink) -> None:
        self.place, self.folder, self.sink = place, work_dir(place), sink
        self.step, self.saved = 0, False
        self._process: psutil.Process | None = None
        self._journal = Journal(self.folder)
        # As this process sees it, which may not have the trainer's disk: the trainer's own positions say nothing here.
        self._position = self._journal.end()

    def __call__(self, event: Event) -> None:
        self._position = self._position.past(event)
        self._take(event)

    def catch_up(self) -> None:
        """Hand on what is in the journal and was not told."""
        more = True
        while more:
            events, position, more = self._journal.after(self._position)
            self._position = position or self._position
            for event in events:
                self._take(event)

    def await_end(self) -> None:
        """Wait until a killed trainer has ended, where it is on this machine."""
        deadline = time.monotonic() + END_SECONDS
        while self._process is not None and lives(self._process) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _take(self, event: Event) -> None:
        self.saved = self.saved or event["event"] == "checkpoint"
        if event["event"] == "started" and "pids" in event:
            with suppress(psutil.Error):
                self._process = psutil.Process(event["pids"]["trainer"])
        if not event["event"].startswith(
            "checkpoint"
        ):  # which is of an earlier step than the run has come to
            self.step = event.get("step", self.step)
        self.sink(event)


def _recover(specification: Specification, following: _Following, stop: StopRequest, cause: RayError) -> None:
    """Note the loss of a trainer, and wait until its replacement may start.

    Raises
    ------
    PeerError, StoppedError
        There shall be none.
    """
    failure = TrainerLost(silent=isinstance(cause, GetTimeoutError))
    targets_file(following.place).unlink(missing_ok=True)
    fetch(following.place, EVENTS.__eq__)
    with opened(Journal(following.folder, following.sink)) as journal:
        events = journal.read("failed", "finished", "recovering", "started")
        rules = Rules.of(specification)
        decision = decide(failure, rules, history_in(events), time.time(), random.random())
        try:
            going = _going_on(decision, following.place, stop)
        except LowdimfaError as error:
            journal.emit("failed", **error.as_event())
            raise error from cause
        journal.emit(
            "recovering",
            lost="trainer",
            policy=going.policy,
            blocks=[],
            reason=failure.reason,
            step=following.step,
            recovery=going.recovery,
        )
    Mirror(following.place, EVENTS.__eq__).update()
    until = time.monotonic() + going.pause
    while (left := until - time.monotonic()) > 0 and not stop.made:  # the replacement will see to the stop
        time.sleep(min(left, PAUSE_LOOK))


def _going_on(decision: GoOn | End, place: str, stop: StopRequest) -> GoOn:
    """Return the decision to go on, or raise why the run ends."""
    way_on = f"continue with --resume from the last checkpoint in {place}"
    if isinstance(decision, End) and decision.why == "policy":
        raise PeerError(f"{decision.words}; {way_on}", setting="run.on_failure")
    if stop.made:
        raise stopped(place)
    if isinstance(decision, End):
        raise RecoveriesUsedUpError(f"{decision.words}; {way_on}", setting="run.max_recoveries")
    return decision
