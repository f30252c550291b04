"""Checkpoints of a run, written while it goes on.

Training stands for as long as it takes to copy the blocks' states. The blocks write their copies, each in a thread of its
own process, and a thread here waits for them and writes the manifest. What became of it the run's own thread notes, which
alone emits events. There is one checkpoint in flight at most: another that falls due waits for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from lowdimfa.errors import (
    BlockLostError,
    DiskFullError,
    LowdimfaError,
    NotFiniteError,
    PeerError,
    StorageError,
)
from lowdimfa.services.recovery.deadlines import START_LIVENESS, longest_silence
from lowdimfa.services.run.background import Background
from lowdimfa.services.run.best import KeepBest
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.mirror import Mirror
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.state import resume_meta
from lowdimfa.services.run.storage import Place
from lowdimfa.services.trainer.engine import Engine
from lowdimfa.services.trainer.flight import REFUSED, Flight, Moment

LONG_WAIT_SECONDS = 1.0
"""If training stands for longer than this because the checkpoint before is still being written, that is worth a word."""


class Saving:
    """Writes the checkpoints of one run.

    Parameters
    ----------
    plan
        The run.
    engine
        Where the blocks are.
    store
        Gets the checkpoints.
    mirror
        Copies the run's small files after each.
    emit, warn
        Record an event, and a warning.

    Attributes
    ----------
    saved
        Step of the last checkpoint of this course of the run, from which it was resumed or which it wrote.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Engine,
        store: CheckpointStore,
        mirror: Mirror,
        emit: Callable[..., Any],
        warn: Callable[[str], Any],
    ) -> None:
        run = plan.specification.run
        self._plan, self._engine, self._store, self._mirror = plan, engine, store, mirror
        self._emit, self._warn = emit, warn
        self._liveness, self._copies = run.liveness_seconds, run.background_checkpoints
        self._best = KeepBest(run.keep_best)
        self.saved: int | None = None
        self._flight: Flight | None = None
        self._copying: Background[str] | None = None
        self._unsaved = 0  # checkpoints that were given up since the last that was written
        self._waited = False  # that training stood for one is said once

    def go_on(self, manifest: Manifest) -> None:
        """Go on from a checkpoint."""
        self.saved = manifest.step
        self._best.go_on(manifest.step, self._store.every(), manifest.meta)

    def went_back(self, step: int) -> None:
        """Go on from an earlier step than was reached; what came after it is given up."""
        self._best.go_on(step, self._store.list())
        if self.saved is not None:
            self.saved = min(self.saved, step)

    def on_the_way(self, now: Moment, due: float | None = None) -> None:
        """Save, if that is possible: the last good checkpoint stays, and the run goes on without a new one.

        Parameters
        ----------
        now
            What is saved.
        due
            When it fell due, by the monotonic clock; None is now.
        """
        if now.step in (self.saved, self._flight and self._flight.now.step):
            return
        began = time.monotonic() if due is None else due
        try:
            self.settle()
            waited = time.monotonic() - began
            self._begin(now, began, needed=False)
        except REFUSED as error:
            self._failed(now.step, error)
            return
        if waited > LONG_WAIT_SECONDS and self._copies and not self._waited:
            self._waited = True
            self._warn(
                f"training stood for {waited:.1f} s at step {now.step}, as the checkpoint before was still being "
                "written; raise run.checkpoint_every"
            )

    def if_best(self, now: Moment) -> None:
        """Save if this is the best evaluation."""
        if self._best.improves(now.evaluated, now.step):
            due = time.monotonic()
            with contextlib.suppress(*REFUSED):  # that is said below
                self.settle()  # this may be better than what is there, and worse than what is being written
            if self._best.improves(now.evaluated, now.step):
                self.on_the_way(now, due)

    def once(self, now: Moment) -> None:
        """Save what the run has come to, unless that is saved, and wait until it is.

        Raises
        ------
        LowdimfaError
            It isn't possible.
        """
        self.settle()
        # One that was saved before it was evaluated doesn't know yet that it is the best.
        if self.saved != now.step or self._best.improves(now.evaluated, now.step):
            try:
                self._begin(now, time.monotonic(), needed=True)
                self.settle()
            except REFUSED:
                if self._unsaved > 1:
                    self._warn(f"nor were {self._unsaved:,} checkpoints before it written")
                raise
        if self._copying is not None:
            self._copying.wait(START_LIVENESS * self._liveness)
            self.look()

    def look(self, at_rest: bool = False) -> None:
        """Note what became of a checkpoint, if it has ended; what ends the run is raised only ``at_rest``."""
        flight = self._flight
        if flight is not None and flight.task.done and (at_rest or not flight.ends_run):
            self._conclude(flight)
        if self._copying is not None and self._copying.done:
            trouble, self._copying = self._copying.result(), None
            if trouble:
                self._warn(f"events and timeline are not copied: {trouble}")

    def settle(self, patience: float | None = None) -> None:
        """Wait until nothing is in flight.

        Parameters
        ----------
        patience
            Seconds that blocks have for their files, by default as many as they have to start.

        Raises
        ------
        StorageError
            The manifest of an earlier checkpoint is neither written nor refused.
        LowdimfaError
            The checkpoint failed in a way that ends the run, or it is needed.
        """
        flight, patience = self._flight, START_LIVENESS * self._liveness if patience is None else patience
        if flight is not None:
            if not flight.over_within(patience):
                longest = longest_silence(self._liveness, started=False)
                if not flight.task.wait(longest):
                    raise StorageError(
                        f"the manifest of the checkpoint of step {flight.now.step} is not written after {longest:g} s",
                        step=flight.now.step,
                        setting="run.storage",
                    )
            self._conclude(flight)
        self.look()

    def before_recovery(self, loss: LowdimfaError) -> None:
        """Wait for what is in flight as long as blocks have to come to rest, but for no block that is lost.

        Raises
        ------
        LowdimfaError
            The run can't go on.
        """
        flight = self._flight
        if flight is None:
            return
        leader = (
            isinstance(loss, BlockLostError) and not loss.replica
        )  # which writes for all replicas of its block
        if leader and loss.block in flight.writing.missing():
            flight.give_up(loss)
        with contextlib.suppress(PeerError, NotFiniteError):  # what is lost is about to be replaced
            self.settle(self._liveness)

    def close(self, wait: bool) -> None:
        """End because the run ends without its last checkpoint; with ``wait`` one in flight is completed if it can be."""
        if self._flight is None:
            return
        if not wait:
            self._flight.give_up(PeerError("the run has ended"))
        with contextlib.suppress(Exception):  # the run ends for another reason
            self.settle()

    def _begin(self, now: Moment, began: float, needed: bool) -> None:
        copy = self._copies and not needed
        attempt = self._store.begin(now.step)
        try:
            writing = self._engine.save(attempt, now.step, copy)
        except LowdimfaError:
            self._store.abandon()
            raise
        notes, kept = self._best.notes(now.evaluated, now.step)
        meta = resume_meta(self._plan) | {"seconds": now.seconds} | notes
        store = self._store

        def commit(entries: list[dict[str, Any]]) -> Place:
            return store.commit(now.step, entries, meta, kept)

        paused = time.monotonic() - began if copy else None
        self._flight = Flight(now, writing, commit, store.abandon, began, paused, needed)
        if not copy and not needed:
            self.settle()

    def _conclude(self, flight: Flight) -> None:
        """Note what became of a checkpoint that has ended."""
        self._flight = None
        try:
            path, seconds = flight.result()
        except LowdimfaError as error:
            if flight.needed or not isinstance(error, REFUSED):
                raise
            self._failed(flight.now.step, error)
            return
        now = flight.now
        self.saved = now.step
        self._best.saved(now.evaluated, now.step)
        paused = seconds if flight.paused is None else flight.paused
        self._emit("checkpoint", step=now.step, path=str(path), seconds=seconds, pause_seconds=paused)
        if self._unsaved > 1:
            self._warn(f"checkpoints are written again; {self._unsaved:,} were not")
        self._unsaved = 0
        if self._copying is None:
            self._copying = Background("copies of small files", self._mirror.update)

    def _failed(self, step: int, error: LowdimfaError) -> None:
        self._emit("checkpoint_failed", step=step, message=error.message)
        if not self._unsaved:
            advice = "make room: " if isinstance(error, DiskFullError) else ""
            self._warn(
                f"no checkpoint of step {step}: {error.message}; {advice}the run goes on and tries again"
            )
        self._unsaved += 1
