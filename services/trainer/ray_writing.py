"""The blocks' files of a checkpoint, while their actors write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from lowdimfa.errors import ResourceError
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.trainer.rescue import WAIT_SECONDS
from lowdimfa.services.trainer.worker_calls import Call, Worker


class RayWriting:
    """Asks each block beside its computation whether its file is written, again and again.

    Parameters
    ----------
    workers
        One of each block, in which `BlockWorker.save` was called.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._asked = {call.reference: call for call in map(self._ask, workers)}
        self._entries: dict[int, dict[str, Any]] = {}
        self._refused: ResourceError | None = None
        self._missing = {worker.seat.block for worker in workers}

    def entries(self, seconds: float) -> list[dict[str, Any]] | None:
        """Return the entries of all blocks, in their order, if they are there within so many seconds."""
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=seconds)
        for reference in done:
            self._hear(self._asked.pop(reference))
        if self._asked:
            return None
        if self._refused is not None:
            raise self._refused
        return [self._entries[block] for block in sorted(self._entries)]

    def missing(self) -> set[int]:
        """Return the blocks that have not told."""
        return set(self._missing)

    def _hear(self, call: Call[dict[str, Any] | None]) -> None:
        block = call.worker.seat.block
        try:
            entry = call.answer("save")
        except ResourceError as error:  # the others go on, and nobody may sweep while they do
            self._refused = self._refused or error
        else:
            if entry is None:
                following = self._ask(call.worker)
                self._asked[following.reference] = following
                return
            self._entries[block] = entry
        self._missing.discard(block)

    @staticmethod
    def _ask(worker: Worker) -> Call[dict[str, Any] | None]:
        return worker.ask(BlockWorker.saved, WAIT_SECONDS)
