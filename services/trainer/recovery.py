"""What becomes of a run when something is lost: it goes on as the specification says, or it fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from lowdimfa.errors import BlockLostError, LowdimfaError, NotFiniteError, PeerError, ProtocolError
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.budget import RecoveryBudget
from lowdimfa.services.trainer.engine import Engine, RecoveryPolicy


class Recovery:
    """Lets a run go on after losses, a bounded number of times.

    Parameters
    ----------
    specification
        With the policy and its bounds.
    engine
        Where the blocks are.
    store
        The run's checkpoints.
    emit
        Records an event.
    """

    def __init__(
        self,
        specification: Specification,
        engine: Engine,
        store: CheckpointStore,
        emit: Callable[..., Event],
    ) -> None:
        choice = specification.run.on_failure
        self._policy: RecoveryPolicy | None = None if choice == "fail" else choice
        self._engine, self._store, self._emit = engine, store, emit
        self._budget = RecoveryBudget.of(specification)
        self._not_finite = False

    def start(self, resume_step: int | None) -> dict[str, object]:
        """Start the engine, again if blocks are lost meanwhile; return what it says of its places."""
        while True:
            try:
                return self._engine.start(resume_step)
            except LowdimfaError as loss:
                self._begin(loss, resume_step or 0)
                self._engine.close()

    def after(self, loss: LowdimfaError, step: int, saved: int | None) -> int:
        """Recover, and return the step to go on from.

        Parameters
        ----------
        loss
            What the engine raised.
        step
            Steps done when it did, as far as is known.
        saved
            Step of the last checkpoint of this course of the run, from which it was resumed or which it wrote. Newer
            ones that may be there are of a course that was given up.

        Raises
        ------
        LowdimfaError
            The run can't go on; its blocks have come to rest.
        """
        noticed = time.monotonic()
        while True:
            policy = self._begin(loss, step)
            checkpoint = None if saved is None else self._store.newest_good(saved).manifest
            try:
                recovered = self._engine.recover(
                    loss, policy, None if checkpoint is None else checkpoint.step
                )
            except LowdimfaError as another:
                loss = another
                continue
            self._emit(
                "recovered",
                policy=policy,
                blocks=recovered.blocks,
                step=recovered.step,
                missed={str(block): steps for block, steps in recovered.missed.items()},
                seconds=time.monotonic() - noticed,
                pids={"blocks": recovered.pids},
            )
            return recovered.step

    def _begin(self, loss: LowdimfaError, step: int) -> RecoveryPolicy:
        """Record that a recovery begins, after a pause if there were others; raise if there can't be one."""
        if self._policy is None or not self._curable(loss):
            raise self._engine.give_up(loss)
        pause = self._budget.spend()
        if pause is None:
            end = PeerError(
                self._budget.used_up(loss.message), block=loss.block, setting="run.max_recoveries"
            )
            self._engine.give_up(end)
            raise end
        named = [loss.block] if isinstance(loss, BlockLostError) and loss.block is not None else []
        self._emit(
            "recovering",
            policy=self._policy,
            blocks=named,
            reason=loss.message,
            step=step,
            recovery=self._budget.total,
        )
        time.sleep(pause)
        return self._policy

    def _curable(self, loss: LowdimfaError) -> bool:
        """Whether the same steps may go well another time.

        A number that isn't finite may be a fault of the hardware, once; training that diverges comes to it again.
        """
        if isinstance(loss, NotFiniteError):
            first, self._not_finite = not self._not_finite, True
            return first
        return isinstance(loss, PeerError | ProtocolError)
