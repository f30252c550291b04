"""Replicas of the blocks' states, kept by the trainer in the cluster's object store, outside the blocks' processes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.replica import Replica

WAIT_SECONDS = 2.0
"""Longest time that a block is asked to wait for its next replica; then it is asked again."""


class ReplicaKeeper:
    """A thread that fetches every block's replicas as they come, and keeps the newest of each.

    A replica is the return value of a call, so it lives on when the block's process ends; once it is here, it is on the
    trainer's node too. Asking for the next one tells a block that the last one is kept.

    Parameters
    ----------
    kept
        By block, from an earlier keeper; shared, not copied.
    actors
        The blocks.
    """

    def __init__(self, kept: dict[int, Replica], actors: Sequence[Any]) -> None:
        self._kept = kept
        self._actors = list(actors)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replicas", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop fetching."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        asked = {self._ask(index): index for index in range(len(self._actors))}
        while asked and not self._closed.is_set():
            ready, _ = ray.wait(list(asked), timeout=0.1)
            for reference in ready:
                index = asked.pop(reference)
                try:
                    replica: Replica | LowdimfaError | None = ray.get(reference)
                except Exception:  # a lost block: whoever waits for its steps finds out and says so
                    continue
                if isinstance(replica, LowdimfaError):
                    continue
                if replica is not None:
                    self._kept[index] = replica
                asked[self._ask(index)] = index

    def _ask(self, index: int) -> Any:
        kept = self._kept.get(index)
        return self._actors[index].ask.remote("next_replica", -1 if kept is None else kept.step, WAIT_SECONDS)
