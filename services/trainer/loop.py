"""The training loop: segments of steps, and between them evaluations, checkpoints and measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lowdimfa.errors import LowdimfaError, NotFiniteError
from lowdimfa.feedback.source import source_of
from lowdimfa.network import StepResult
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.recovery.policy import History
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.run.disk import written_at
from lowdimfa.services.run.language import Language
from lowdimfa.services.run.manifest import Manifest
from lowdimfa.services.run.mirror import Mirror, work_dir
from lowdimfa.services.run.notes import aligns, notes
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import Place
from lowdimfa.services.trainer.callbacks import Callbacks, ended
from lowdimfa.services.trainer.engine import Engine
from lowdimfa.services.trainer.flight import Moment
from lowdimfa.services.trainer.progress import ProgressMeter
from lowdimfa.services.trainer.recovery import Recovery
from lowdimfa.services.trainer.run_dir import postmortem_file
from lowdimfa.services.trainer.saving import Saving
from lowdimfa.services.trainer.stopping import StopRequest, stopped
from lowdimfa.services.trainer.watch import TrainerWatch


class TrainingLoop:
    """Drives an engine through a run.

    Parameters
    ----------
    plan
        The run.
    engine
        Where the blocks are.
    place
        Of the run; gets checkpoints.
    log
        Gets events.
    watch
        Gets what Prometheus sees of the trainer.
    callbacks
        Are told of all events.
    stop
        Asks for an early end.
    mirror
        Copies the run's small files at each checkpoint, where it is kept in an object store.
    history
        What the run went through under trainers that this one replaces, by the monotonic clock.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Engine,
        place: Place,
        log: Journal,
        watch: TrainerWatch,
        callbacks: Callbacks,
        stop: StopRequest,
        mirror: Mirror | None = None,
        history: History | None = None,
    ) -> None:
        self._plan, self._engine, self._place = plan, engine, place
        self._log, self._watch, self._callbacks, self._stop = log, watch, callbacks, stop
        watch.steps_per_epoch = plan.order.steps_per_epoch
        run = plan.specification.run
        store = self._store = CheckpointStore(place, run.keep, run.liveness_seconds)
        self._total = plan.network.training.total_steps
        self._seconds, self._done = 0.0, 0
        self.begun = False  # whether the blocks are there, with the state from which they go on
        self._mirror = mirror or Mirror(place)
        self._saving = Saving(plan, engine, store, self._mirror, self._emit, self._warn)
        periods: list[tuple[int, Callable[[], None]]] = [
            (run.alignment_every if aligns(plan.network) else 0, self._align),
            (run.evaluate_every_epochs * plan.order.steps_per_epoch, self._evaluate),
            (run.evaluate_every_epochs * plan.order.steps_per_epoch, self._save_if_best),
            (run.checkpoint_every, self._save_on_the_way),
        ]
        self._periods = [(period, action) for period, action in periods if period]
        self._evaluated: dict[str, Any] = {}
        self._language = Language.of(plan)
        self._recovery = Recovery(plan.specification, engine, store, self._emit, history or History())
        self._meter = ProgressMeter(
            self._emit,
            drawn=plan.order.drawn,
            steps_per_epoch=plan.order.steps_per_epoch,
            total_steps=self._total,
            every=plan.specification.train.log_every,
            language=self._language,
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
        LowdimfaError
            Something was lost, and the specification doesn't let the run go on.
        """
        if manifest is not None:
            self._done = manifest.step
            self._seconds = float(manifest.meta.get("seconds", 0.0))
            self._saving.go_on(manifest)
        self._store.claim()
        self._mirror.guard(self._store.require_own)
        places = self._recovery.start(self._saving.saved)
        self._store.go_on_from(self._done)
        self.begun = True
        self._started(places)
        try:
            while not (self._train() and self._conclude()):
                pass  # a recovery left steps, or the evaluation of what it came to, to do
        except BaseException as error:
            self._saving.close(wait=isinstance(error, Exception))
            raise
        return self._finished()

    def _train(self) -> bool:
        """Run all steps that are wanted, with what is due between them; return False after a step back."""
        while self._done < self._total and (self._stop.asked or self._stop.reason is None):
            if self._stop.asked:
                if not self._unharmed(self._save_once):
                    return False
                raise stopped(self._place)
            self._segment(self._next_boundary())
        return True

    def _conclude(self) -> bool:
        """Evaluate and save what the run has come to; return False if a recovery left something of that to do."""
        done = self._unharmed(self._evaluate_once) and self._unharmed(self._save_once)
        return done and bool(self._evaluated)

    def _started(self, places: dict[str, Any]) -> None:
        plan = self._plan
        self._emit(
            "started",
            run_dir=str(self._place),
            engine=self._engine.name,
            blocks=len(plan.network.blocks),
            boundaries=plan.network.boundaries,
            replicas=plan.specification.replicas,
            parameters=self._parameters,
            error_dim=plan.network.shape.error_dim,
            source=source_of(plan.network.feedback),
            evaluated_split=plan.specification.data.evaluated_split,
            steps=self._total,
            step=self._done,
            **places,
        )
        for note in notes(plan):
            self._emit("warning", message=note)

    def _took(self, results: Sequence[StepResult]) -> None:
        self._meter.take(results)
        self._saving.look()

    def _segment(self, boundary: int) -> None:
        self._meter.begin(self._done)
        try:
            self._run_steps(boundary)
        except LowdimfaError as loss:
            self._recover(loss, self._meter.last_step)
            if self._done != boundary:
                return
        if not self._unharmed(partial(self._saving.look, at_rest=True)):
            return
        for period, action in self._periods:
            if self._done % period == 0 and not self._unharmed(action):
                return

    def _run_steps(self, boundary: int) -> None:
        began = time.monotonic()
        try:
            self._done = self._engine.run_steps(self._done, boundary, self._took, self._stop)
        finally:
            self._seconds += time.monotonic() - began

    def _unharmed(self, action: Callable[[], None]) -> bool:
        """Do something at a step boundary, again after losses; return False if a recovery went back to another step."""
        while True:
            before = self._done
            try:
                action()
                return True
            except LowdimfaError as loss:
                self._recover(loss, before)
            if self._done != before:
                return False

    def _recover(self, loss: LowdimfaError, step: int) -> None:
        """Go on from the step that a recovery leads to, or raise the loss."""
        self._saving.before_recovery(loss)
        words = postmortem_file(work_dir(self._place))
        earlier = written_at(words)
        reason, self._stop.reason = self._stop.reason, None
        try:
            self._done = self._recovery.after(loss, step, self._saving.saved)
        except LowdimfaError:
            if written_at(words) not in (None, earlier):
                self._warn(f"every block's last words are in {words}")
            raise
        if self._done >= step:
            # Else it was that of a course which is given up, for which a callback may have another one.
            self._stop.reason = self._stop.reason or reason
        else:
            self._saving.went_back(self._done)
        self._evaluated = {}  # of weights of which blocks may have lost some steps

    def _next_boundary(self) -> int:
        boundaries = [(self._done // period + 1) * period for period, _ in self._periods]
        return min([*boundaries, self._total])

    def _evaluate_once(self) -> None:
        if not self._evaluated or self._evaluated["step"] != self._done:
            self._evaluate()

    def _evaluate(self) -> None:
        result = self._engine.evaluate()
        if not math.isfinite(result.loss):
            head = len(self._plan.network.blocks) - 1
            update = self._plan.network.training.update_of(head)
            raise NotFiniteError(
                f"the test loss is not finite after step {self._done} in the head (block {head}); lower the "
                f"learning rate ({update.rate_key}), set {update.clip_key}, or check the data",
                block=head,
                step=self._done,
                setting=update.rate_key,
            )
        found = {"test_loss": result.loss, "test_accuracy": result.accuracy}
        self._evaluated = {"step": self._done} | found | self._language.evaluated(result)
        self._evaluated |= {"metrics": result.metrics} if result.metrics else {}
        self._emit("evaluated", **self._evaluated)

    def _align(self) -> None:
        self._emit("alignment", step=self._done, **self._engine.align().as_event())

    def _save_once(self) -> None:
        self._saving.once(self._now)

    def _save_if_best(self) -> None:
        self._saving.if_best(self._now)

    def _save_on_the_way(self) -> None:
        self._saving.on_the_way(self._now)

    @property
    def _now(self) -> Moment:
        return Moment(self._done, self._seconds, self._evaluated)

    def _finished(self) -> Event:
        samples = self._plan.order.drawn(self._done)
        traffic = self._engine.traffic()
        early = {} if self._done == self._total else {"stopped_early": self._stop.reason}
        fields = dict(
            run_dir=str(self._place),
            steps=self._done,
            samples=samples,
            seconds=self._seconds,
            samples_per_second=samples / self._seconds if self._seconds else 0.0,
            **{key: value for key, value in self._evaluated.items() if key != "step"},
            blocks=len(self._plan.network.blocks),
            error_dim=self._plan.network.shape.error_dim,
            broadcast_payload_bytes_per_sample=traffic.payload,
            broadcast_wire_bytes_per_sample=traffic.wire,
            parameters=self._parameters,
            **early,
        )
        return ended(self._log, self._watch, self._callbacks, "finished", fields)

    def _emit(self, event: str, **fields: Any) -> Event:
        entry = self._log.emit(event, **fields)
        self._watch.saw(entry)
        for trouble in self._callbacks.saw(entry):
            self._warn(trouble)
        return entry

    def _warn(self, message: str) -> None:
        self._log.emit("warning", message=message)

    @property
    def _parameters(self) -> int:
        return sum(block.parameters for block in self._plan.network.blocks)
