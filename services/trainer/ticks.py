"""What the trainer looks after while blocks run: that none holds the others up, and an end that somebody asks for."""

from __future__ import annotations

import time

from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.recovery.deadlines import holds_up
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.worker_calls import gather
from lowdimfa.services.trainer.worker_group import WorkerGroup


class StallWatch:
    """Notices when no block gets on, and names the one that holds the others up.

    Parameters
    ----------
    group
        The workers, and their liveness: after as many seconds without any progress, or without an answer, the run is
        stalled. A silent block is named within it: a look every quarter waits for three quarters.
    patience
        Seconds without progress, where it is not the liveness.
    """

    def __init__(self, group: WorkerGroup, patience: float | None = None) -> None:
        self._group = group
        self._patience = group.liveness if patience is None else patience
        self._next_look = time.monotonic() + group.liveness / 4

    def look(self) -> None:
        """Ask all blocks what they do, a few times per liveness.

        Raises
        ------
        BlockLostError
            A block doesn't answer, or computes for longer than the liveness while the others wait.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._group.liveness / 4
        patience = 3 * self._group.liveness / 4
        statuses = gather(self._group.ask(BlockWorker.status), "say what it does", patience)
        number = holds_up(statuses, self._patience)
        if number is not None:
            worker, status = self._group.workers[number], statuses[number]
            raise worker.lost(
                f"{worker.name} holds the run up: {status.activity}; raise run.liveness_seconds if it may take longer",
                step=status.applied_steps,
                setting="run.liveness_seconds",
            )


class EarlyEnd:
    """Lets all blocks end a run of steps at the earliest boundary that each of them can still keep.

    The first block alone decides, because no other begins a step before it: it is asked to begin no further step, and
    answers with the step before which it ends. Then the others hear of it, while they work on what is on its way.

    Parameters
    ----------
    group
        The workers.
    stop
        Who wants the end.
    """

    def __init__(self, group: WorkerGroup, stop: StopRequest) -> None:
        self._group = group
        self._stop = stop
        self._asked = False
        self._told = False

    def look(self) -> None:
        """Take the next step of the agreement, if there is one to take.

        Raises
        ------
        LowdimfaError
            A block was lost or gives no answer.
        """
        if self._told or not self._stop.made:
            return
        group, first = self._group, self._group.workers[0]
        if not self._asked:
            self._asked = True
            group.ask_one(first, BlockWorker.end_at, 0)
        end = group.ask_one(first, BlockWorker.ends_at)
        if end is not None:
            self._told = True
            gather(group.ask(BlockWorker.end_at, end), "end early", group.liveness)
