"""A checkpoint between the copy of the blocks' states and its manifest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lowdimfa.errors import DiskFullError, LowdimfaError, StorageError
from lowdimfa.services.run.background import Background
from lowdimfa.services.run.storage import Place
from lowdimfa.services.trainer.engine import Writing

LOOK_SECONDS = 0.5
"""Pause between looks at whether a checkpoint is still wanted."""

REFUSED = DiskFullError, StorageError
"""What a run goes on with, as its last good checkpoint stays."""


class Moment(NamedTuple):
    """What a run has come to when a checkpoint is due.

    Attributes
    ----------
    step
        Optimiser steps applied.
    seconds
        Of training.
    evaluated
        The latest evaluation, with its step; empty if there is none.
    """

    step: int
    seconds: float
    evaluated: Mapping[str, Any]


class Flight:
    """A checkpoint that is being written, and the thread that completes it.

    Parameters
    ----------
    now
        Of which moment it is.
    writing
        The blocks' files.
    commit
        Writes the manifest, and returns where the checkpoint is.
    abandon
        Removes what a checkpoint that fails leaves.
    began
        When it fell due, by the monotonic clock.
    paused
        Seconds that training stood for it; None if it waits for the whole.
    needed
        Whether the run can't do without it.

    Attributes
    ----------
    task
        The thread.
    """

    def __init__(
        self,
        now: Moment,
        writing: Writing,
        commit: Callable[[list[dict[str, Any]]], Place],
        abandon: Callable[[], None],
        began: float,
        paused: float | None,
        needed: bool,
    ) -> None:
        self.now, self.writing, self.paused, self.needed = now, writing, paused, needed
        self._commit, self._abandon, self._began = commit, abandon, began
        self._turn = threading.Lock()
        self._given_up: LowdimfaError | None = None
        self._closing = False
        self.task = Background(f"checkpoint of step {now.step}", self._complete)

    @property
    def ends_run(self) -> bool:
        """Whether it has failed in a way that the run can't go on with."""
        error = self.task.error
        return error is not None and (self.needed or not isinstance(error, REFUSED))

    def give_up(self, why: LowdimfaError) -> bool:
        """Let it never be completed; return False if its manifest is being written, or what it left removed."""
        with self._turn:
            if not self._closing:
                self._given_up = why
        return not self._closing

    def over_within(self, patience: float) -> bool:
        """Wait so many seconds, then give it up; return False if that is no longer possible."""
        return self._given_up is not None or self.task.wait(patience) or self.give_up(self._late(patience))

    def result(self) -> tuple[Place, float]:
        """Return where it is and how many seconds it took, or raise why it isn't."""
        if self._given_up is not None:
            raise self._given_up
        return self.task.result()

    def _complete(self) -> tuple[Place, float]:
        try:
            while (entries := self.writing.entries(LOOK_SECONDS)) is None:
                if self._given_up is not None:
                    raise self._given_up
        except Exception:
            self._close()
            self._abandon()
            raise
        self._close()
        return self._commit(entries), time.monotonic() - self._began

    def _close(self) -> None:
        """Let nobody give it up any more: while files are swept no other checkpoint may be in the making."""
        with self._turn:
            if self._given_up is not None:
                raise self._given_up
            self._closing = True

    def _late(self, patience: float) -> StorageError:
        blocks = ", ".join(f"block {block}" for block in sorted(self.writing.missing()))
        return StorageError(
            f"the files of {blocks or 'the blocks'} were not written within {patience:g} s; raise "
            "run.liveness_seconds if the storage needs longer",
            step=self.now.step,
            setting="run.liveness_seconds",
        )
