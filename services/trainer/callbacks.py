"""Tells a run's callbacks what happens, each in a thread of its own, and waits for none of them for ever."""

from __future__ import annotations

import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lowdimfa.callback import CALLS, Callback, Run
from lowdimfa.errors import InputError, in_words
from lowdimfa.imports import call_factory
from lowdimfa.services.callbacks.tensorboard import TensorBoard
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.recovery.deadlines import START_LIVENESS
from lowdimfa.services.spec import Specification
from lowdimfa.services.spec.given import written
from lowdimfa.services.trainer.watch import TrainerWatch

T = TypeVar("T")

WAITING_EVENTS = 10_000
"""Most events that wait for a callback in the background; more are dropped."""


def make_callbacks(specification: Specification, given: Sequence[Callback] = ()) -> list[Callback]:
    """Return the callbacks of a run: TensorBoard's, those of the specification, and those that were given as objects.

    Raises
    ------
    InputError
        A factory can't be imported, doesn't take its arguments, fails, hangs, or makes something else than a callback;
        or a callback's check fails or hangs.
    """
    patience = START_LIVENESS * specification.run.liveness_seconds
    made: list[Callback] = [TensorBoard()] if specification.run.tensorboard else []
    for number, section in enumerate(specification.run.callbacks):
        where = f"run.callbacks.{number}"
        make = partial(call_factory, section.factory, dict(section.args), f"{where}.factory")
        found = _answer(make, f"{where}.factory", repr(section.factory), patience)
        made.append(_required(found, f"{where}.factory", f"{section.factory!r}, which makes"))
    made += [_required(one, f"callbacks[{index}]", "") for index, one in enumerate(given)]
    for callback in made:
        _check(callback, written(specification.model_dump()), patience)
    return made


def _answer(call: Callable[[], T], where: str, what: str, patience: float) -> T:
    """Return what a call of the user's comes to, or refuse it when it takes too long."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name=where, daemon=True).start()
    if not wait([answer], patience).done:
        found, hint = (
            f"{what}, which gives no answer in {patience:g} s",
            "run.liveness_seconds sets how long.",
        )
        raise InputError(where, found, "one that comes back", hint)
    return answer.result()


def _check(callback: Callback, specification: dict[str, Any], patience: float) -> None:
    name = f"the callback {type(callback).__qualname__}"
    if late := [one for one in (*CALLS, "check") if inspect.iscoroutinefunction(getattr(callback, one))]:
        raise InputError(name, f"{late[0]!r} as a coroutine", "plain methods, as nothing awaits them")
    if isinstance(callback.watches, str):
        raise InputError(f"{name}: watches", repr(callback.watches), "a tuple of names")
    try:
        _answer(partial(callback.check, specification), name, "its check", patience)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's
        found, expected = f"a check that fails ({in_words(error)})", "an InputError, or nothing"
        raise InputError(name, found, expected) from error


def _required(found: Any, where: str, what: str) -> Callback:
    if isinstance(found, Callback):
        return found
    kind = f"the class {found.__name__}" if inspect.isclass(found) else f"an object of {type(found).__name__}"
    expected = "an object of a class derived from lowdimfa.Callback"
    raise InputError(where, f"{what} {kind}".strip(), expected)


class Callbacks:
    """The callbacks of one run.

    Parameters
    ----------
    callbacks
        In the order in which they are told.
    specification, path
        Of the run.
    stop
        Called with the reason when one of them wants the run to end.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        specification: Specification,
        path: Path,
        stop: Callable[[str], None],
    ) -> None:
        self._patience = specification.run.liveness_seconds
        self._called = [
            _Called(each, Run(written(specification.model_dump()), path, stop)) for each in callbacks
        ]
        self._step = 0

    def saw(self, event: Event) -> list[str]:
        """Tell all of an event, and return, once each, why a callback is not called any more.

        Each of those that the run waits for has as long as the liveness to come back.
        """
        if event["event"] in CALLS:
            step = int(event.get("step", self._step))
            # A checkpoint is of an earlier step than the run has come to.
            self._step = step if event["event"] == "recovered" else max(self._step, step)
            for called in self._called:
                called.tell(event, self._step)
                if not called.callback.background:
                    called.wait(time.monotonic() + self._patience)
        return [trouble for called in self._called if (trouble := called.trouble())]

    def end(self, event: Event) -> list[str]:
        """Do so with the last event; all that callbacks still do has as long as the liveness, taken together."""
        began, step = time.monotonic(), event.get("steps", self._step)
        aside = [called for called in self._called if called.callback.background]
        in_turn = [called for called in self._called if not called.callback.background]
        for called in aside:
            called.tell(event, step, last=True)
        for called in in_turn:
            called.tell(event, step, last=True)
            called.wait(time.monotonic() + self._patience / len(in_turn))
        for called in aside:
            called.wait(began + self._patience)
        told = [trouble for called in self._called if (trouble := called.trouble())]
        self._called = []
        return told


class _Told(NamedTuple):
    """An event for a callback, the steps that are done, and what is set once the callback has seen to it."""

    event: Event
    step: int
    last: bool
    done: threading.Event


class _Called:
    """One callback, in a thread that begins with the first event."""

    def __init__(self, callback: Callback, run: Run) -> None:
        self.callback, self._run = callback, run
        self._name = type(callback).__qualname__
        self._waiting: queue.Queue[_Told] = queue.Queue(WAITING_EVENTS)
        self._newest: _Told | None = None
        self._thread: threading.Thread | None = None
        self._over = False
        self._trouble: str | None = None

    def tell(self, event: Event, step: int, last: bool = False) -> None:
        """Hand an event over, unless the callback failed, hangs, or is too far behind."""
        if self._over and not last:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"callback {self._name}", daemon=True)
            self._thread.start()
        told = _Told(deepcopy(event), step, last, threading.Event())  # which the callback may change
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(told)
            self._newest = told

    def wait(self, deadline: float) -> None:
        """Wait until the callback has seen to what it was told, or give it up."""
        told = self._newest
        if self._over or told is None or told.done.wait(max(0.0, deadline - time.monotonic())):
            return
        self._over = True
        self._trouble = self._sentence(f"gives no answer to {told.event['event']!r}")

    def trouble(self) -> str | None:
        """Return, once, why the callback is not called any more."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def _sentence(self, what: str) -> str:
        return f"the callback {self._name} {what}; it is not called any more"

    def _work(self) -> None:
        last = False
        while not last:
            event, self._run.step, last, done = self._waiting.get()
            if not self._over:
                try:
                    getattr(self.callback, event["event"])(event, self._run)
                except BaseException as error:  # even `sys.exit`: it is the user's
                    self._trouble = self._sentence(f"failed in {event['event']!r} ({in_words(error)})")
                    self._over = True
            done.set()


def ended(
    log: Journal, watch: TrainerWatch, callbacks: Callbacks, event: str, fields: dict[str, Any]
) -> Event:
    """Record the last event of a run and return it; callbacks are told first, since what fails in them is logged."""
    for trouble in callbacks.end({"event": event, "time": time.time(), **fields}):
        log.emit("warning", message=trouble)
    entry = log.emit(event, **fields)
    watch.saw(entry)
    return entry
