"""What becomes of a run when something is lost: it goes on as the specification says, or it fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lowdimfa.errors import BlockLostError, LowdimfaError, RecoveriesUsedUpError
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.recovery.policy import (
    BlocksFailed,
    End,
    History,
    RecoveryPolicy,
    Rules,
    decide,
    history_in,
)
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.engine import Engine, Saved


def history_of(journal: Journal) -> History:
    """Return what a run went through under the trainers before this one, by the monotonic clock of this process."""
    found = history_in(journal.read("failed", "finished", "recovering", "started"))
    now, clock = time.time(), time.monotonic()
    # Another machine's clock may have noted them, and be ahead.
    return replace(found, begun=tuple(clock - max(0.0, now - moment) for moment in found.begun))


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
    history
        What the run went through before, by the monotonic clock.
    """

    def __init__(
        self,
        specification: Specification,
        engine: Engine,
        store: CheckpointStore,
        emit: Callable[..., Event],
        history: History,
    ) -> None:
        rules = Rules.of(specification)
        self._rules, self._history = rules if engine.recovers else replace(rules, on_failure=None), history
        self._engine, self._store, self._emit = engine, store, emit

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
            try:
                recovered = self._engine.recover(
                    loss, policy, Saved(saved, partial(self._newest_good, saved))
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

    def _newest_good(self, saved: int | None) -> int | None:
        manifest = None if saved is None else self._store.newest_good(saved).manifest
        return None if manifest is None else manifest.step

    def _begin(self, loss: LowdimfaError, step: int) -> RecoveryPolicy:
        """Record that a recovery begins, after a pause if there were others; raise if there can't be one."""
        decision = decide(BlocksFailed(loss), self._rules, self._history, time.monotonic(), random.random())
        if isinstance(decision, End):
            if decision.why != "used up":
                raise self._engine.give_up(loss)
            end = RecoveriesUsedUpError(decision.words, block=loss.block, setting="run.max_recoveries")
            self._engine.give_up(end)
            raise end
        self._history = decision.history
        named = [loss.block] if isinstance(loss, BlockLostError) and loss.block is not None else []
        self._emit(
            "recovering",
            lost="blocks",
            policy=decision.policy,
            blocks=named,
            code=loss.code,
            reason=loss.message,
            step=step,
            recovery=decision.recovery,
        )
        time.sleep(decision.pause)
        return decision.policy
