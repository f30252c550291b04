"""Ctrl-C and SIGTERM during a run: the first ends it in order, the second at once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lowdimfa.services.cli.display import wrapped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = "stopping: finishing the step and writing a checkpoint; again to stop at once"
_TOO_LONG = "stopping at once: the step and its checkpoint took longer than {:g} s"


@contextmanager
def graceful_signals(stop: Callable[[], None], patience: float) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request, and what follows into a `KeyboardInterrupt`.

    Parameters
    ----------
    stop
        Makes the request; called in a signal handler.
    patience
        Seconds that the request may take; after that it counts as made twice.
    """
    asked = False
    deadline = threading.Timer(patience, _interrupt, [patience])
    deadline.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        _say(_NOTICE)
        stop()
        deadline.start()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        deadline.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(patience: float) -> None:
    _say(_TOO_LONG.format(patience))
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _say(text: str) -> None:
    """Write a line to standard error past all buffers, whose locks the interrupted code may hold."""
    start = ""
    if sys.stderr.isatty():
        start = "\r\x1b[2K"  # in place of a progress bar, which is drawn anew below
        text = wrapped(text, shutil.get_terminal_size().columns)
    with suppress(OSError):  # nobody may read it any more
        os.write(2, f"{start}{text}\n".encode())
