"""A block's state outside its own process: what is lost with the process is bounded, and needs no disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy
import numpy.typing
import safetensors.torch
from torch import Tensor

from lowdimfa.services.run.state import copied
from lowdimfa.stage import Stage, finite_sum


@dataclass(frozen=True)
class Snapshot:
    """A block's state after a step, as it travels.

    Attributes
    ----------
    step
        Optimiser steps applied.
    tensors
        In the safetensors format. An array and not ``bytes``, so that it stays in the object store's shared memory when
        it is fetched from there.
    scalars
        What JSON can hold.
    """

    step: int
    tensors: numpy.typing.NDArray[numpy.uint8]
    scalars: dict[str, Any]

    def restore(self, stage: Stage) -> None:
        """Give a newly built stage this state."""
        stage.load(safetensors.torch.load(self.tensors.tobytes()), self.scalars)


class SnapshotShelf:
    """Hands snapshots from the thread that owns the weights to whoever keeps them elsewhere.

    At most one waits to be fetched. Whoever fetches says which one it has kept, and before the block applies a further
    step the last one must be kept: so a lost block has lost at most ``every`` steps that it had applied.

    Parameters
    ----------
    every
        Optimiser steps between snapshots.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._changed = threading.Condition()
        self._offered: tuple[int, dict[str, Tensor], dict[str, Any]] | None = None
        self._kept = -1

    def offer(self, stage: Stage, step: int) -> None:
        """Copy a block's state after a step, if a snapshot is due there and all of it is finite."""
        if step % self._every:
            return
        learned = [*stage.module.parameters(), *(site.feedback.weights for site in stage.sites)]
        # Only these: a mask among the buffers, or a "best so far" of the optimiser, may well be infinite.
        if not all(bool(finite_sum(parameter.detach())) for parameter in learned):
            return  # the last one is the better state to go back to
        # A safetensors file can't hold tensors that share memory, as tied weights do; these are all copies.
        state = copied(stage.state())
        with self._changed:
            self._offered = step, *state
            self._changed.notify_all()

    def settled(self, patience: float) -> bool:
        """Wait until the last snapshot is kept; return False if it isn't after ``patience`` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._offered is None or self._kept >= self._offered[0], patience
            )

    def fetch(self, kept: int, patience: float) -> Snapshot | None:
        """Return the next snapshot, or None if there is none within ``patience`` seconds.

        Parameters
        ----------
        kept
            The step of the last snapshot that the caller has kept, or -1.
        patience
            In seconds.
        """
        with self._changed:
            self._kept = kept
            self._changed.notify_all()
            there = self._changed.wait_for(
                lambda: self._offered is not None and self._offered[0] > kept, patience
            )
            offered = self._offered
        if not there or offered is None:
            return None
        step, tensors, scalars = offered
        return Snapshot(step, numpy.frombuffer(safetensors.torch.save(tensors), numpy.uint8), scalars)
