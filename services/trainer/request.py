"""A run that somebody wants, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lowdimfa.callback import Callback
from lowdimfa.services.monitoring.journal import EVENTS, Journal, Sink
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.mirror import fetch, work_dir
from lowdimfa.services.run.naming import unname
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import Specification, parse_specification

EngineName = Literal["ray", "local"]


@dataclass(frozen=True)
class RunRequest:
    """A run that somebody wants: plain data, which travels to the trainer's process.

    Attributes
    ----------
    specification
        As plain data.
    run_dir
        Absolute path, or address.
    engine
        ``ray`` or ``local``.
    resume
        Whether to go on from a checkpoint: the newest, unless ``resume_step`` names another.
    user_code
        The files beside the specification.
    lost_at
        When the loss of an earlier trainer was noticed that this run makes up for, in Unix seconds; None if it makes
        up for none.
    resume_step
        Step of the checkpoint to go on from, for a run that is resumed; None is the newest.
    way_on
        Command by which a person resumes the run, for messages; empty for that of ``lowdimfa train``.
    callbacks
        Given as objects, beside those of the specification.
    """

    specification: dict[str, Any]
    run_dir: str
    engine: EngineName
    resume: bool
    user_code: UserCode
    lost_at: float | None = None
    resume_step: int | None = None
    way_on: str = ""
    callbacks: tuple[Callback, ...] = ()

    def again(self, lost_at: float | None = None, *, ready: bool = False, began: bool = False) -> RunRequest:
        """Return the request of a further attempt in the same directory.

        It goes on from the newest checkpoint; without one it begins anew, for which the directory is made ready.

        Parameters
        ----------
        lost_at
            See above.
        ready
            Whether that was done before, and somebody may work there; otherwise nobody does.
        began
            Whether the attempt that this one makes up for said ``started``: before that, what the journal says of
            checkpoints is of an earlier part of the run.
        """
        there = CheckpointStore(self.run_dir).every()
        resume = bool(there)
        if not resume and not ready:
            unname(self.run_dir)
        # One that was completed, and whose event was not written any more, has removed the given one or left it.
        resume_step = self.resume_step if self.resume_step in there else None
        if began and resume_step is not None:
            fetch(self.run_dir, EVENTS.__eq__)
            # Until there is a checkpoint of this course of the run, the newest is of the one that was given up.
            saved = [event["event"] for event in self.journal().read("started", "checkpoint")]
            resume_step = None if saved[-1:] == ["checkpoint"] else resume_step
        return replace(self, resume=resume, resume_step=resume_step, lost_at=lost_at)

    def journal(self, sink: Sink | None = None) -> Journal:
        """Return the run's journal, with a sink for what is appended."""
        return Journal(work_dir(self.run_dir), sink, self.lost_at)

    def parsed(self) -> Specification:
        """Return the specification."""
        return parse_specification(self.specification, "the run's specification")
