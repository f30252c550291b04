"""Imports that take seconds, in less time."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import without looking for garbage meanwhile, which takes a quarter of the time: what is imported stays."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()


def load(*modules: str) -> None:
    """Import modules in a process that is going to fork: without the pool of threads that numpy otherwise makes."""
    own = "OPENBLAS_NUM_THREADS" not in os.environ
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with loading():
        for name in modules:
            importlib.import_module(name)
    if own:
        del os.environ["OPENBLAS_NUM_THREADS"]
