"""What the training loop needs of an engine: the same for blocks in this process and for blocks in actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lowdimfa.alignment import Alignment
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import StepResult
from lowdimfa.services.recovery.policy import RecoveryPolicy
from lowdimfa.services.run.checkpoint import Attempt
from lowdimfa.services.trainer.stopping import StopRequest

OnSteps = Callable[[Sequence[StepResult]], None]


@dataclass(frozen=True)
class BroadcastTraffic:
    """What one subscribing block received of the error broadcast, per training sample, in bytes; None if not known.

    Attributes
    ----------
    payload
        The numbers alone: ``4 * error_dim`` for each position of a sample, 4 more where the class goes with it.
    wire
        With message, gRPC and HTTP/2 framing.
    """

    payload: float | None = 0.0
    wire: float | None = 0.0


@dataclass(frozen=True)
class Recovered:
    """What a recovery came to.

    Attributes
    ----------
    step
        Training goes on from here.
    blocks
        Whose processes were replaced.
    missed
        By block, how many of the optimiser steps before ``step`` it lacks; those that lack none are left out.
    pids
        Of all blocks' processes now.
    """

    step: int
    blocks: list[int]
    missed: dict[int, int]
    pids: list[int]


@dataclass(frozen=True)
class Saved:
    """The checkpoints of the present course of a run.

    Attributes
    ----------
    step
        Of the last one that was completed, or None if there is none.
    newest_good
        Returns the step of the newest one that is as it was written, or None if there is none. It reads all of it.
    """

    step: int | None
    newest_good: Callable[[], int | None]


class Writing(Protocol):
    """The blocks' files of a checkpoint, while they are written. One thread at a time asks."""

    def entries(self, seconds: float) -> list[dict[str, Any]] | None:
        """Return the entries of all blocks for the manifest, or None if not all are there after so many seconds.

        Raises
        ------
        LowdimfaError
            A block can't write its file, once all others have ended too; or one is lost.
        """

    def missing(self) -> set[int]:
        """Return the indexes of the blocks that have not told yet what became of their files. Any thread may ask."""


class Engine(Protocol):
    """Runs a planned network. Between calls it is at rest at a step boundary.

    Attributes
    ----------
    name
        As `--engine` has it.
    recovers
        Whether it can go on after a loss.
    """

    name: str
    recovers: bool

    def start(self, resume_step: int | None) -> dict[str, Any]:
        """Bring all blocks up, from a checkpoint when a step is given; return ``pids`` by role and ``nodes``."""

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Run the steps ``first_step <= t < last_step``, report them in order, and return the step reached.

        That is ``last_step``, or an earlier one when a stop is requested meanwhile: all blocks then rest at that
        boundary, having run every step before it and at least one.
        """

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy on the test split."""

    def align(self) -> Alignment:
        """Compare each block's update with the true gradient, on one batch of the training split."""

    def save(self, attempt: Attempt, step: int, copy: bool) -> Writing:
        """Begin to write every block's state after a step into a checkpoint.

        With a copy of it the blocks may go on at once; otherwise they rest until all is written.
        """

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        """Replace what was lost, and bring all blocks to a step from which they can go on.

        Parameters
        ----------
        loss
            What the last call raised.
        policy
            Which blocks go back.
        saved
            Where blocks go back to.

        Raises
        ------
        LowdimfaError
            More was lost meanwhile; it can be called again with that.
        """

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        """End all computation after a loss without recovery, and return the error that began it all."""

    def traffic(self) -> BroadcastTraffic:
        """Return what the error broadcast carried so far."""

    def close(self) -> None:
        """End everything that the engine started."""
