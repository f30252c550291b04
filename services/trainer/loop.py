"""The training loop: segments of steps, and between them evaluations, checkpoints and measurements."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowdimfa.errors import LowdimfaError, NotFiniteError
from services.run.checkpoint import CheckpointStore
from services.run.manifest import Manifest
from services.run.plan import RunPlan
from services.run.state import resume_meta
from services.trainer.engine import Engine
from services.trainer.events import Event, EventLog, ProgressMeter
from services.trainer.stopping import StopRequest, stopped
from services.trainer.tensorboard import Board
from services.trainer.watch import TrainerWatch


class TrainingLoop:
    """Drives an engine through a run.

    Parameters
    ----------
    plan
        The run.
    engine
        Where the blocks are.
    run_dir
        Gets checkpoints.
    log
        Gets events.
    watch
        Gets what Prometheus sees of the trainer.
    board
        Gets what TensorBoard shows.
    stop
        Asks for an early end.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Engine,
        run_dir: Path,
        log: EventLog,
        watch: TrainerWatch,
        board: Board,
        stop: StopRequest,
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._run_dir = run_dir
        self._log = log
        self._watch = watch
        self._board = board
        self._stop = stop
        self._store = CheckpointStore(run_dir, plan.specification.run.keep)
        self._total = plan.network.training.total_steps
        self._seconds = 0.0
        self._done = 0
        self._saved: int | None = None
        run = plan.specification.run
        periods: list[tuple[int, Callable[[], None]]] = [
            (run.alignment_every if plan.network.feedback.form == "broadcast" else 0, self._align),
            (run.evaluate_every_epochs * plan.order.steps_per_epoch, self._evaluate),
            (run.checkpoint_every, self._save),
        ]
        self._periods = [(period, action) for period, action in periods if period]
        self._evaluated: dict[str, Any] = {}
        self._meter = ProgressMeter(
            self._emit,
            batch_size=plan.order.batch_size,
            steps_per_epoch=plan.order.steps_per_epoch,
            total_steps=self._total,
            every=plan.specification.train.log_every,
        )

    def run(self, manifest: Manifest | None) -> Event:
        """Run to the end and return the ``finished`` event.

        Parameters
        ----------
        manifest
            Of the checkpoint to go on from.

        Raises
        ------
        StoppedError
            Somebody asked for an early end; the checkpoint of the step reached is written.
        """
        if manifest is not None:
            self._done = self._saved = manifest.step
            self._seconds = float(manifest.meta.get("seconds", 0.0))
        self._board.begin(self._saved)
        places = self._engine.start(None if manifest is None else manifest.step)
        self._started(places)
        while self._done < self._total:
            if self._stop.made:
                self._save_once()
                raise stopped(self._run_dir)
            self._segment(self._next_boundary())
        if not self._evaluated or self._evaluated["step"] != self._done:
            self._evaluate()
        self._save_once()
        self._board.close()
        self._warn()  # while the run's last event is still to come
        return self._finished()

    def _started(self, places: dict[str, Any]) -> None:
        plan = self._plan
        self._emit(
            "started",
            run_dir=str(self._run_dir),
            engine=self._engine.name,
            blocks=len(plan.network.blocks),
            parameters=self._parameters,
            error_dim=plan.network.shape.error_dim,
            steps=self._total,
            step=self._done,
            **places,
        )

    def _segment(self, boundary: int) -> None:
        self._meter.begin(self._done)
        began = time.monotonic()
        self._done = self._engine.run_steps(self._done, boundary, self._meter.take, self._stop)
        self._seconds += time.monotonic() - began
        for period, action in self._periods:
            if self._done % period == 0:
                action()

    def _next_boundary(self) -> int:
        boundaries = [(self._done // period + 1) * period for period, _ in self._periods]
        return min([*boundaries, self._total])

    def _evaluate(self) -> None:
        result = self._engine.evaluate()
        if not math.isfinite(result.loss):
            head = len(self._plan.network.blocks) - 1
            raise NotFiniteError(
                f"the test loss is not finite after step {self._done} in the head (block {head}); lower the "
                "learning rate (train.optimizer.args.lr), set train.grad_clip, or check the data",
                block=head,
                step=self._done,
                setting="train.optimizer.args.lr",
            )
        self._evaluated = {"step": self._done, "test_loss": result.loss, "test_accuracy": result.accuracy}
        self._emit("evaluated", **self._evaluated)

    def _align(self) -> None:
        self._emit("alignment", step=self._done, **self._engine.align().as_event())

    def _save_once(self) -> None:
        if self._saved != self._done:
            self._save()

    def _save(self) -> None:
        began = time.monotonic()
        directory = self._store.begin(self._done)
        try:
            entries = self._engine.save(directory, self._done)
        except LowdimfaError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        meta = resume_meta(self._plan) | {"seconds": self._seconds}
        path = self._store.commit(self._done, entries, meta)
        self._saved = self._done
        self._emit("checkpoint", step=self._done, path=str(path), seconds=time.monotonic() - began)

    def _finished(self) -> Event:
        samples = self._done * self._plan.order.batch_size
        traffic = self._engine.traffic()
        return self._emit(
            "finished",
            run_dir=str(self._run_dir),
            steps=self._done,
            samples=samples,
            seconds=self._seconds,
            samples_per_second=samples / self._seconds if self._seconds else 0.0,
            test_loss=self._evaluated["test_loss"],
            test_accuracy=self._evaluated["test_accuracy"],
            blocks=len(self._plan.network.blocks),
            error_dim=self._plan.network.shape.error_dim,
            broadcast_payload_bytes_per_sample=traffic.payload,
            broadcast_wire_bytes_per_sample=traffic.wire,
            parameters=self._parameters,
        )

    def _emit(self, event: str, **fields: Any) -> Event:
        entry = self._log.emit(event, **fields)
        self._watch.saw(entry)
        self._board.saw(entry)
        self._warn()
        return entry

    def _warn(self) -> None:
        if trouble := self._board.trouble():
            self._log.emit("warning", message=trouble)

    @property
    def _parameters(self) -> int:
        return sum(block.parameters for block in self._plan.network.blocks)


def failed(log: EventLog, watch: TrainerWatch, error: LowdimfaError) -> None:
    """Record the end of a run that failed."""
    watch.saw(log.emit("failed", **error.as_event()))
