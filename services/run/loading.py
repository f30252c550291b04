"""Imports that take seconds, in less time."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def loading() -> Iterator[None]:
    """Import without looking for garbage meanwhile, which takes a quarter of the time: what is imported stays.

    A signal that would end the process does so at the end at the latest: libraries swallow every exception, also
    `KeyboardInterrupt`, in places that try what there is.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        with _no_signal_lost():
            yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()


@contextmanager
def _no_signal_lost() -> Iterator[None]:
    before: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():  # which alone has handlers
        for each in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(each)):
                before[each] = handler
    raised: list[BaseException] = []

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            before[signal.Signals(number)](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if raised:
            raise raised[0]


def load(*modules: str) -> None:
    """Import modules in a process that is going to fork: without the pool of threads that numpy otherwise makes."""
    own = "OPENBLAS_NUM_THREADS" not in os.environ
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with loading():
        for name in modules:
            importlib.import_module(name)
    if own:
        del os.environ["OPENBLAS_NUM_THREADS"]
