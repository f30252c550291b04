"""All blocks in this process: ``--engine local``, which needs no Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lowdimfa.alignment import Alignment, measure_alignment
from lowdimfa.build import build_stages
from lowdimfa.errors import InputError, LowdimfaError, StorageError
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Evaluation
from lowdimfa.network import DecoupledNetwork, computing_threads
from lowdimfa.services.block.devices import block_device
from lowdimfa.services.monitoring.timeline import TimelineWriter
from lowdimfa.services.recovery.policy import RecoveryPolicy
from lowdimfa.services.run.background import Writer
from lowdimfa.services.run.checkpoint import Attempt, CheckpointStore
from lowdimfa.services.run.data import read_ahead
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.state import load_stage, saving
from lowdimfa.services.run.storage import Place
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.services.trainer.engine import BroadcastTraffic, OnSteps, Recovered, Saved
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.trainer import InProcessTrainer
from lowdimfa.values import Activation, entering

ALIGNMENT_SAMPLES = 256

CLOSE_SECONDS = 5.0
"""Longest time that the writer of a checkpoint that was given up has to remove what it has written."""

_COMPUTING = threading.RLock()


@contextmanager
def alone(engine: str) -> Iterator[None]:
    """Refuse a run in this process beside one in another thread: each would draw from the generators of the other.

    Raises
    ------
    InputError
        There is one.
    """
    if engine == "local" and not _COMPUTING.acquire(blocking=False):
        expected = "one at a time, as torch's random numbers are those of the whole process"
        raise InputError(
            "engine 'local'", "a run in another thread of this process", expected, "Start a process for each."
        )
    try:
        yield
    finally:
        if engine == "local":
            _COMPUTING.release()


class LocalEngine:
    """The in-process trainer behind the engines' interface.

    Parameters
    ----------
    plan
        The run.
    place
        Of the run: for checkpoints to resume from, and the timeline.
    """

    name = "local"
    recovers = False

    def __init__(self, plan: RunPlan, place: Place) -> None:
        self._plan = plan
        self._place = place
        self._threads = ExitStack()
        self._timeline: TimelineWriter | None = None
        self._aligned_on: tuple[Activation, torch.Tensor] | None = None
        self._writer = Writer[list[dict[str, Any]]]("checkpoint", plan.specification.run.liveness_seconds)

    def start(self, resume_step: int | None) -> dict[str, Any]:
        """Build all blocks."""
        self._threads.enter_context(unchanged_generators())
        self._threads.enter_context(computing_threads(self._plan.specification.placement.threads_of(0)))
        network = self._plan.network
        device = block_device(self._plan.specification.placement.gpus_per_block)
        blocks, head = build_stages(
            network.blocks, network.feedback, network.training, self._plan.dataset.task, device
        )
        use_own_threads([*blocks, head], self._plan.specification.placement)
        self._network = DecoupledNetwork(blocks, head, network.feedback)
        plan = self._plan
        reader = read_ahead(plan.specification, plan.reader, plan.network.training.total_steps)
        self._threads.callback(reader.close)
        self._trainer = InProcessTrainer(self._network, plan.dataset, plan.order, reader)
        if resume_step is not None:
            manifest = CheckpointStore(self._place).load(resume_step)
            for stage in self._network.stages:
                load_stage(stage, manifest)
        if self._plan.specification.run.timeline:
            self._timeline = TimelineWriter(work_dir(self._place) / "timeline" / "block-0.jsonl")
        return {"pids": {"trainer": os.getpid(), "blocks": []}, "nodes": 1}

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Run steps one after the other."""
        began = time.time()
        step = first_step
        while step < last_step and not (stop.made and step > first_step):
            result = self._trainer.step(step)
            ended = time.time()
            if self._timeline is not None:
                self._timeline.record("step", step, 0, began, ended)
            began = ended
            on_steps([result])
            step += 1
        return step

    def evaluate(self) -> Evaluation:
        """Return loss and accuracy on the test split."""
        return self._trainer.evaluate()

    def align(self) -> Alignment:
        """Compare each block's update with the true gradient."""
        if self._aligned_on is None:  # read once, as a stream's reader would have to go back and forth
            self._aligned_on = alignment_batch(self._plan)
        inputs, targets = self._aligned_on
        device = self._network.head.device
        return measure_alignment(
            self._network.blocks, self._network.head, inputs.to(device), targets.to(device)
        )

    def save(self, attempt: Attempt, step: int, copy: bool) -> LocalWriting:
        """Begin to write every block's state, one after the other."""
        if not self._writer.end():  # before copies are made: there is room for one of each block
            raise StorageError("the checkpoint before is still being written", step=step)
        writes = [saving(stage, attempt, step, copy) for stage in self._network.stages]
        self._writer.begin(lambda unwanted: [write(unwanted) for write in writes])
        return LocalWriting(self._writer, len(writes))

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        """Refuse: blocks in one process are lost all together, and this process with them."""
        raise loss

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        """There is nothing to end."""
        return loss

    def traffic(self) -> BroadcastTraffic:
        """Nothing is sent within one process."""
        return BroadcastTraffic()

    def close(self) -> None:
        """Write out the timeline, give torch its number of threads back, and end what writes for nobody any more."""
        self._writer.end(CLOSE_SECONDS)
        if self._timeline is not None:
            self._timeline.close()
        self._threads.close()


class LocalWriting:
    """What a thread of this process writes for all blocks.

    Parameters
    ----------
    writer
        Which writes it.
    blocks
        How many there are.
    """

    def __init__(self, writer: Writer[list[dict[str, Any]]], blocks: int) -> None:
        self._writer, self._blocks = writer, blocks

    def entries(self, seconds: float) -> list[dict[str, Any]] | None:
        """Return the entries of all blocks, if they are there within so many seconds."""
        return self._writer.written(seconds)

    def missing(self) -> set[int]:
        """Return all blocks, or none once all are written."""
        return set() if self._writer.done else set(range(self._blocks))


def alignment_batch(plan: RunPlan) -> tuple[Activation, torch.Tensor]:
    """Return the first samples of the training split, on which alignment is measured."""
    samples = plan.reader.training(torch.arange(min(ALIGNMENT_SAMPLES, len(plan.dataset.train))))
    return entering(samples.inputs()), samples.targets()
