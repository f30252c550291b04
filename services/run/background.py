"""Work in a thread of its own, of which somebody asks later what it came to."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """One call in a thread, for which a process that ends does not wait.

    Parameters
    ----------
    name
        Of the thread.
    call
        What it does.
    """

    def __init__(self, name: str, call: Callable[[], T]) -> None:
        self._call = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until the call has ended; return False if it has not after so many seconds."""
        return self._done.wait(seconds)

    @property
    def error(self) -> BaseException | None:
        """What the call has raised, if it has."""
        return self._error

    def result(self) -> T:
        """Return what the call, which has ended, returned, or raise what it raised."""
        assert self.done, "the call goes on"
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # it is raised where somebody asks
            _clear(error)
            self._error = error
        finally:
            del self._call  # and with it what it holds, which may be a copy of all weights
            self._done.set()


def _clear(error: BaseException | None) -> None:
    """Let an error, and what led to it, hold nothing that was worked on: it may be kept for long."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class Writer(Generic[T]):
    """Writes one thing at a time in the background.

    Parameters
    ----------
    name
        Of its threads.
    patience
        Seconds within which what is ended has to end.
    """

    def __init__(self, name: str, patience: float) -> None:
        self._name, self._patience = name, patience
        self._task: Background[T] | None = None
        self._unwanted = threading.Event()

    @property
    def done(self) -> bool:
        """Whether nothing is being written."""
        return self._task is None or self._task.done

    def end(self, patience: float | None = None) -> bool:
        """End what is being written, which nobody wants any more; return False if it does not end.

        Parameters
        ----------
        patience
            Seconds, by default those of all.
        """
        self._unwanted.set()
        return self._task is None or self._task.wait(self._patience if patience is None else patience)

    def begin(self, write: Callable[[Callable[[], bool]], T]) -> None:
        """Begin to write; what was written before has ended.

        Parameters
        ----------
        write
            Is given something that says whether nobody wants it any more.
        """
        assert self.done, "another is being written"
        unwanted = self._unwanted = threading.Event()
        self._task = Background(self._name, lambda: write(unwanted.is_set))

    def written(self, patience: float) -> T | None:
        """Return what writing came to, or None if it has not ended within ``patience`` seconds; raise what it raised."""
        assert self._task is not None, "nothing was begun"
        return self._task.result() if self._task.wait(patience) else None
