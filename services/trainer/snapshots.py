"""Snapshots of the blocks' states, kept by the trainer in the cluster's object store, outside the blocks' processes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.block.snapshot import Snapshot

WAIT_SECONDS = 2.0
"""Longest time that a block is asked to wait for its next snapshot; then it is asked again."""


class SnapshotKeeper:
    """A thread that fetches every block's snapshots as they come, and keeps the newest of each.

    A snapshot is the return value of a call, so it lives on when the block's process ends; once it is here, it is on the
    trainer's node too. Asking for the next one tells a block that the last one is kept.

    Parameters
    ----------
    kept
        By block, from an earlier keeper; shared, not copied.
    actors
        The blocks.
    """

    def __init__(self, kept: dict[int, Snapshot], actors: Sequence[Any]) -> None:
        self._kept = kept
        self._actors = list(actors)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
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
                    snapshot: Snapshot | LowdimfaError | None = ray.get(reference)
                except Exception:  # a lost block: whoever waits for its steps finds out and says so
                    continue
                if isinstance(snapshot, LowdimfaError):
                    continue
                if snapshot is not None:
                    self._kept[index] = snapshot
                asked[self._ask(index)] = index

    def _ask(self, index: int) -> Any:
        kept = self._kept.get(index)
        return self._actors[index].ask.remote(
            "next_snapshot", -1 if kept is None else kept.step, WAIT_SECONDS
        )
