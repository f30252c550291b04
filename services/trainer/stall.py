"""Nothing hangs: a run that doesn't get on ends with the name of the block that holds it up."""

from __future__ import annotations

import time

from lowdimfa.services.block.worker import Status
from lowdimfa.services.trainer.fleet import Fleet


class StallWatch:
    """Notices when no block gets on, and names the one that holds the others up.

    Parameters
    ----------
    fleet
        The blocks.
    liveness
        Seconds without any progress, or without an answer, after which the run is stalled. A silent block is named
        within it: a look every quarter waits for three quarters.
    """

    def __init__(self, fleet: Fleet, liveness: float) -> None:
        self._fleet = fleet
        self._liveness = liveness
        self._next_look = time.monotonic() + liveness / 4

    def look(self) -> None:
        """Ask all blocks what they do, a few times per liveness.

        Raises
        ------
        BlockLostError
            A block doesn't answer, or computes for longer than the liveness while the others wait.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._liveness / 4
        statuses: list[Status] = self._fleet.gather(
            self._fleet.ask("status"), "say what it does", 3 * self._liveness / 4
        )
        stuck = [
            (index, status)
            for index, status in enumerate(statuses)
            if status.working and status.seconds > self._liveness
        ]
        if stuck:
            index, status = stuck[0]
            raise self._fleet.lost(
                index,
                f"{self._fleet.name(index)} holds the run up: {status.activity}; raise run.liveness_seconds if it may "
                "take longer",
                step=status.applied_steps,
                setting="run.liveness_seconds",
            )
