"""Ctrl-C and SIGTERM during a run: the first ends it in order, the second at once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOP_LIVENESS = 4.0
"""An ordered stop may take this many times the liveness: one step, and a checkpoint as long as at the start."""

_DEFAULTS: dict[signal.Signals, Callable[[int, FrameType | None], Any] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
_NOTICE = "stopping: finishing the step and writing a checkpoint; again to stop at once"
_TOO_LONG = "stopping at once: the step and its checkpoint took longer than {:g} s"


class Stopping:
    """An early end that is asked for by a signal, or by any thread.

    Parameters
    ----------
    stop
        Makes the request; may be called in a signal handler.
    patience
        Seconds that the request may take; after that the run ends at once.
    notice
        What is said of the request.
    """

    def __init__(self, stop: Callable[[], None], patience: float, notice: str = _NOTICE) -> None:
        self._once = threading.Lock()  # taken without waiting, as a signal handler must, and never given back
        self._stop, self._notice = stop, notice
        self._deadline = threading.Timer(patience, self._give_up, [patience])
        self._deadline.daemon = True

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._once.locked()

    def ask(self) -> None:
        """Ask for an end after the step and a checkpoint; more than once is the same as once."""
        if self._once.acquire(blocking=False):
            _say(self._notice)
            self._stop()
            self._deadline.start()

    def now(self) -> None:
        """End at once, by a `KeyboardInterrupt` in the main thread."""
        self._once.acquire(blocking=False)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def over(self) -> None:
        """Note that the end has come."""
        self._deadline.cancel()

    def _give_up(self, patience: float) -> None:
        _say(_TOO_LONG.format(patience))
        self.now()


@contextmanager
def graceful_signals(stop: Callable[[], None], patience: float, notice: str = _NOTICE) -> Iterator[Stopping]:
    """Turn the first SIGINT or SIGTERM into a request, and what follows into a `KeyboardInterrupt`.

    Parameters
    ----------
    stop, patience, notice
        As for `Stopping`, which is given: whoever has it may make the request too.
    """
    with _handled(_DEFAULTS, Stopping(stop, patience, notice)) as stopping:
        yield stopping


@contextmanager
def graceful_by_default(stop: Callable[[], None], patience: float) -> Iterator[None]:
    """Do as `graceful_signals` in a program that leaves signals to Python: what it handles itself is left to it.

    In other threads than the main one nothing can be done, and isn't. SIGTERM goes the way of SIGINT or none.
    """
    free = [number for number, default in _DEFAULTS.items() if signal.getsignal(number) is default]
    if threading.current_thread() is not threading.main_thread() or signal.SIGINT not in free:
        yield
        return
    with _handled(free, Stopping(stop, patience)):
        yield


@contextmanager
def _handled(numbers: Iterable[signal.Signals], stopping: Stopping) -> Iterator[Stopping]:
    here = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # in a fork, which is nobody's run: a signal is what it is elsewhere
            if number == signal.SIGINT:  # a terminal sends it to all; the run may need its helpers to the end
                return
            signal.signal(number, _DEFAULTS[signal.Signals(number)])
            signal.raise_signal(number)
            return
        if stopping.asked:
            raise KeyboardInterrupt
        stopping.ask()

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stopping
    finally:
        stopping.over()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Write a line to standard error past all buffers, whose locks the interrupted code may hold."""
    start = ""
    if sys.stderr.isatty():
        start = "\r\x1b[2K"  # in place of a progress bar, which is drawn anew below
        columns = shutil.get_terminal_size().columns
        text = textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)
    with suppress(OSError):  # nobody may read it any more
        os.write(2, f"{start}{text}\n".encode())
