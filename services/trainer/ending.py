"""Blocks that end their steps early agree on where, without the pipeline coming to a halt first."""

from __future__ import annotations

from lowdimfa.services.trainer.fleet import Fleet
from lowdimfa.services.trainer.stopping import StopRequest


class EarlyEnd:
    """Lets all blocks end a run of steps at the earliest boundary that each of them can still keep.

    The first block alone decides, because no other begins a step before it: it is asked to begin no further step, and
    answers with the step before which it ends. Then the others hear of it, while they work on what is on its way.

    Parameters
    ----------
    fleet
        The blocks.
    stop
        Who wants the end.
    """

    def __init__(self, fleet: Fleet, stop: StopRequest) -> None:
        self._fleet = fleet
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
        if not self._asked:
            self._asked = True
            self._fleet.ask_one(0, "end_at", 0)
        end: int | None = self._fleet.ask_one(0, "ends_at")
        if end is not None:
            self._told = True
            self._fleet.gather(self._fleet.ask("end_at", end), "end early", self._fleet.liveness)
