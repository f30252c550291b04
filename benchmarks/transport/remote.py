"""Objects in processes of their own, whose methods are called over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Remote:
    """Runs a callable that makes an object in a new process, and calls that object's methods.

    Parameters
    ----------
    make
        A function or class of a module, called in the process.
    arguments
        Of ``make``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> None:
        """Begin a call; `answer` returns what it does."""
        self._pipe.send((method, arguments))

    def answer(self, timeout: float = 300.0) -> Any:
        """Return the result of the call that was begun.

        Raises
        ------
        RuntimeError
            The call failed, with the process's own traceback, or took too long.
        """
        if not self._pipe.poll(timeout):
            raise RuntimeError(f"no answer within {timeout:g} s")
        worked, result = self._pipe.recv()
        if not worked:
            raise RuntimeError(result)
        return result

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its result."""
        self.ask(method, *arguments)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def each(remotes: Sequence[Remote], method: str, *arguments: Any) -> list[Any]:
    """Call a method of several objects at the same time."""
    for remote in remotes:
        remote.ask(method, *arguments)
    return [remote.answer() for remote in remotes]


@contextmanager
def processes(*makes: tuple[Any, ...]) -> Iterator[list[Remote]]:
    """Start one process for each callable and its arguments, and end them all."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited: each process computes with one thread
    with ExitStack() as stack:
        remotes = [Remote(*make) for make in makes]
        for remote in remotes:
            stack.callback(remote.close)
        yield remotes


def resident_bytes() -> int:
    """Return how much memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    found = None
    try:
        found = make(*arguments)
        while True:
            method, given = pipe.recv()
            pipe.send((True, getattr(found, method)(*given)))
    except (EOFError, BrokenPipeError):
        pass
    except Exception:
        pipe.send((False, traceback.format_exc()))
        time.sleep(1)
    finally:
        if found is not None:
            found.close()
