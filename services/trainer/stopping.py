"""Ending a run at a step boundary, because somebody asks for it."""

from __future__ import annotations

import shlex

from lowdimfa.errors import LowdimfaError, StoppedError, StorageError
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.naming import START_PATIENCE
from lowdimfa.services.run.storage import Place


class StopRequest:
    """The wish that a run ends after the step that it is in.

    Plain attributes and no lock, so that a signal handler may make it as well as any thread.

    Attributes
    ----------
    asked
        Whether somebody asked: the run writes a checkpoint and ends as stopped. It is never withdrawn.
    reason
        Why a callback has the run end as finished; None where none does.
    """

    def __init__(self) -> None:
        self.asked = False
        self.reason: str | None = None

    @property
    def made(self) -> bool:
        """Whether the run is to end at its next step boundary, in whichever way."""
        return self.asked or self.reason is not None

    def make(self) -> None:
        """Ask; more than once is the same as once."""
        self.asked = True

    def finish(self, reason: str) -> None:
        """Let the run end as finished; the first reason counts."""
        self.reason = self.reason or str(reason) or "a callback"


def stopped(run_dir: Place) -> StoppedError:
    """Say what a run that the user stopped leaves."""
    go_on = f"with --resume --run-dir {shlex.quote(str(run_dir))}"
    try:
        steps = CheckpointStore(run_dir, patience=START_PATIENCE).list()
    except StorageError as error:
        return StoppedError(f"stopped; go on {go_on}, if it has a checkpoint: {error.message}")
    if steps:
        return StoppedError(f"stopped; go on from step {steps[-1]} {go_on}", step=steps[-1])
    return StoppedError(
        f"stopped before the first checkpoint of {run_dir}; run.checkpoint_every makes some on the way",
        setting="run.checkpoint_every",
    )


def with_way_on(error: LowdimfaError, place: str, command: str) -> LowdimfaError:
    """Return an error of a disk or a store with what to do about it; ``command`` resumes the run, if one is known."""
    go_on = f"go on with: {command or f'lowdimfa train SPEC --resume --run-dir {shlex.quote(place)}'}"
    if isinstance(error, StorageError):
        way = f"once it can be reached, {go_on}"
    elif CheckpointStore(place).list():
        way = f"make room, then {go_on}"
    else:
        way = "make room, then start the run again, in a new directory"
    return type(error)(f"{error.message}; {way}", block=error.block, setting=error.setting)
