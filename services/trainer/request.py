"""A run that somebody wants, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lowdimfa.callback import Callback
from lowdimfa.services.monitoring.journal import Journal, Sink
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.mirror import work_dir
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

    def again(self, lost_at: float | None = None, *, ready: bool = False, saved: bool = False) -> RunRequest:
        """Return the request of a further attempt in the same directory.

        It goes on from the newest checkpoint; without one it begins anew, for which the directory is made ready.

        Parameters
        ----------
        lost_at
            See above.
        ready
            Whether that was done before, and somebody may work there; otherwise nobody does.
        saved
            Whether the attempt that this one makes up for told of a checkpoint: until then the newest may be of the
            course that ``resume_step`` gave up.
        """
        there = CheckpointStore(self.run_dir).every()
        resume = bool(there)
        if not resume and not ready:
            unname(self.run_dir)
        # One that was completed, and whose event was not written any more, has removed the given one or left it.
        gone = self.resume_step not in there
        resume_step = None if saved or gone else self.resume_step
        return replace(self, resume=resume, resume_step=resume_step, lost_at=lost_at)

    def journal(self, sink: Sink | None = None) -> Journal:
        """Return the run's journal, with a sink for what is appended."""
        return Journal(work_dir(self.run_dir), sink, self.lost_at)

    def parsed(self) -> Specification:
        """Return the specification."""
        return parse_specification(self.specification, "the run's specification")
