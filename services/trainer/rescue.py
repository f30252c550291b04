"""After a loss: which blocks are left, and how they come to rest after the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from lowdimfa.errors import BlockLostError, LowdimfaError, PeerError
from lowdimfa.services.block.worker import Status
from lowdimfa.services.trainer.fleet import Fleet


class Rescue:
    """Brings the blocks that are left to rest.

    Parameters
    ----------
    fleet
        All blocks.
    method, running
        What every worker was called for when the loss was noticed, and the calls; none if it was for nothing.
    lost
        Workers that are known to be lost.

    Attributes
    ----------
    lost
        Workers whose processes are of no more use; it grows while others turn out to be lost too.
    applied
        Optimiser steps that each worker that is left has applied; filled by `bring_to_rest`.
    """

    def __init__(self, fleet: Fleet, method: str, running: Sequence[Any], lost: set[int]) -> None:
        self._fleet, self._method, self._running = fleet, method, running
        self._head = len(fleet.actors) - 1
        self.lost = lost
        self.applied: dict[int, int] = {}
        self._call_roll()

    def bring_to_rest(self, loss: LowdimfaError, drain: bool) -> None:
        """Let all blocks that are left end what they do.

        Parameters
        ----------
        loss
            Why.
        drain
            Whether they first make the updates whose errors the head has broadcast. Blocks that run steps then come to
            rest after the same step, if the head is left.
        """
        if self._running:
            if drain and self._method == "run_steps":
                self._halt_at_head()
            else:
                self._abort(loss)
        self._call_roll()

    def _call_roll(self) -> None:
        """Note who is left, and how far it is."""
        answers: dict[int, Status] = self._fleet.roll_call("status", self._fleet.liveness / 2, self.lost)
        self.applied = {index: status.applied_steps for index, status in answers.items()}
        self.lost |= set(range(self._head + 1)) - answers.keys()

    def _halt_at_head(self) -> None:
        """Halt the head, then the others after the last error that it has broadcast."""
        through = None
        if self._head not in self.lost:
            self._tell([self._head], "halt", None)
            self._await([self._head])
        if self._head not in self.lost:
            through = self._fleet.ask_one(self._head, "published")
        others = [index for index in range(self._head) if index not in self.lost]
        self._tell(others, "halt", through)
        self._await(others)

    def _abort(self, loss: LowdimfaError) -> None:
        left = [index for index in range(self._head + 1) if index not in self.lost]
        self._tell(left, "abort", PeerError(f"all blocks come to rest: {loss.message}"))
        self._await(left)

    def _tell(self, blocks: Sequence[int], method: str, argument: Any) -> None:
        told = [self._fleet.actors[index].ask.remote(method, argument) for index in blocks]
        if (
            told
        ):  # it must not reach the blocks when they have gone on; one that doesn't hear is found lost next
            ray.wait(told, num_returns=len(told), timeout=self._fleet.liveness)

    def _await(self, blocks: Sequence[int]) -> None:
        """Wait until blocks have ended what they were called for; those that don't are lost."""
        ended = self._fleet.outcomes([self._running[index] for index in blocks], self._fleet.liveness, blocks)
        for index in blocks:
            if index not in ended or isinstance(ended[index], BlockLostError):
                self.lost.add(index)
