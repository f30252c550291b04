"""An engine without blocks that loses what a test says, and a training loop that drives it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowdimfa.callback import Callback
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import StepResult
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.run.checkpoint import Attempt, BlockState, CheckpointStore, write_block
from lowdimfa.services.run.plan import RunPlan, make_run_plan
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer import recovery
from lowdimfa.services.trainer.callbacks import Callbacks
from lowdimfa.services.trainer.engine import BroadcastTraffic, OnSteps, Recovered, RecoveryPolicy, Saved
from lowdimfa.services.trainer.loop import TrainingLoop
from lowdimfa.services.trainer.run_dir import opened, postmortem_file
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.watch import TrainerWatch

STEPS, EVALUATE, SAVE, ALIGN = 12, 4, 3, 5
SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": STEPS, "batch_size": 375, "log_every": 1},  # `EVALUATE` batches make an epoch
    "run": {
        "checkpoint_every": SAVE,
        "alignment_every": ALIGN,
        "liveness_seconds": 60.0,  # only a hang reaches it: checkpoints and callbacks have it for a deadline
        "timeline": False,
        "max_recoveries": 100,
    },
}


@functools.cache
def _planned() -> RunPlan:
    return make_run_plan(parse_specification(SPECIFICATION, "test"))


def plan(**run: Any) -> RunPlan:
    """Return the plan of a small run, with other settings in its section ``run``."""
    changed = SPECIFICATION | {"run": SPECIFICATION["run"] | run}
    return replace(_planned(), specification=parse_specification(changed, "test"))


class Measured:
    """Stands for an alignment."""

    def as_event(self) -> dict[str, Any]:
        return {"blocks": []}


class Written:
    """Blocks' files that are there."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self._found = found

    def entries(self, seconds: float) -> list[dict[str, Any]] | None:
        return self._found

    def missing(self) -> set[int]:
        return set()


class LossyEngine:
    """Its state is a number that depends on its whole course; each loss of a script happens once.

    ``script`` has triples: a method, the step at which it is called (of ``run_steps``: which it has reached), and what
    it raises then. Losses of one method and step happen in their order.
    """

    name = "lossy"
    recovers = True

    def __init__(self, script: Sequence[tuple[str, int, BaseException]] = ()) -> None:
        self.script = list(script)
        self.step = self.recoveries = 0
        self.value = 0.0
        self.saved: dict[int | None, float] = {None: 0.0}
        self.calls: list[tuple[Any, ...]] = []
        self.checkpoints: list[int | None] = []
        self.given_up: list[LowdimfaError] = []
        self.started = False
        self.missed: dict[int, int] = {}
        self.run_dir: Path | None = None
        self.begun: int | None = None
        self.stop_at: tuple[str, StopRequest] | None = None

    def _note(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, self.step, *arguments))
        if self.stop_at is not None and self.stop_at[0] == method:
            self.stop_at[1].make()
        for index, (which, step, loss) in enumerate(self.script):
            if which == method and step == self.step:
                del self.script[index]
                raise loss

    def start(self, resume_step: int | None) -> dict[str, Any]:
        assert not self.started
        self.started, self.begun = True, None
        self.step, self.value = resume_step or 0, self.saved[resume_step]
        self._note("start")
        return {"pids": {"trainer": 1, "blocks": [2, 3]}, "nodes": 1}

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        assert first_step == self.step < last_step <= STEPS
        while self.step < last_step and not (stop.made and self.step > first_step):
            self._note("run_steps")
            result = StepResult(self.step)
            result.add(1.0, 1, 2)
            self.step += 1
            self.value += 1 + self.recoveries / 1000
            on_steps([result])
        return self.step

    def evaluate(self) -> Evaluation:
        self._note("evaluate")
        return Evaluation(self.value, 1, 1, 2)

    def align(self) -> Any:
        self._note("align")
        return Measured()

    def save(self, attempt: Attempt, step: int, copy: bool) -> Any:
        assert step == self.step
        entry = write_block(
            attempt, BlockState(0, ["0"], {"value": torch.tensor([self.value], dtype=torch.float64)}, {})
        )
        self._note("save")
        self.saved[step], self.begun = self.value, step
        return Written([entry])

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        checkpoint = saved.newest_good()
        self.checkpoints.append(checkpoint)
        self._note("recover", policy, loss)
        self.recoveries += 1
        self.begun = None
        missed = {} if policy == "restart" or checkpoint == self.step else self.missed
        if policy == "restart":
            self.step, self.value = checkpoint or 0, self.saved[checkpoint]
        elif missed:
            self.value -= 0.5
        return Recovered(self.step, [1], missed, [2, 4])

    def newest(self, run_dir: Path) -> Path | None:
        """Return the file of the block in the newest checkpoint, once that is complete, or None if there is none."""
        there = CheckpointStore(run_dir).list() if self.begun is None else [self.begun]
        if not there:
            return None
        folder, limit = run_dir / "checkpoints" / f"step-{there[-1]:08d}", time.monotonic() + 60
        while not (folder / "manifest.json").exists():
            assert time.monotonic() < limit
            time.sleep(0.001)
        (entry,) = json.loads((folder / "manifest.json").read_text())["blocks"]
        return folder / entry["file"]

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        self.given_up.append(loss)
        if self.run_dir is not None:
            postmortem_file(self.run_dir).write_text("last words")
        return loss

    def traffic(self) -> BroadcastTraffic:
        return BroadcastTraffic()

    def close(self) -> None:
        self.started = False


def drive(
    engine: LossyEngine,
    run_dir: Path,
    *,
    stop: StopRequest | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    replaced: bool = False,
    **run: Any,
) -> list[dict[str, Any]]:
    """Run the loop to its end, without pauses between recoveries, and return the events.

    ``replaced`` says that this trainer is there in place of a lost one.
    """
    run_dir.mkdir(exist_ok=True)
    manifest = CheckpointStore(run_dir).newest_good().manifest if resume else None
    stop, made = stop or StopRequest(), plan(**run)
    told = Callbacks(callbacks, made.specification, run_dir, stop.finish)
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda seconds: None)
    with opened(Journal(run_dir)) as journal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "time", clock)
        history = recovery.history_of(journal) if replaced else None
        watch = TrainerWatch("test")
        TrainingLoop(made, engine, run_dir, journal, watch, told, stop, history=history).run(manifest)
    return events(run_dir)


def events(run_dir: Path) -> list[dict[str, Any]]:
    """Return what a run has logged."""
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def of(found: Sequence[dict[str, Any]], *kinds: str) -> list[tuple[str, int]]:
    """Return kind and step of the events of some kinds."""
    return [(event["event"], event["step"]) for event in found if event["event"] in kinds]
