"""Blocks in Ray actors: placement and control by Ray, micro-batches and errors over gRPC between the blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from lowdimfa.alignment import Alignment, measure_alignment
from lowdimfa.build import build_stages
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import computing_threads
from lowdimfa.trainer import evaluation_batches
from services.block.job import BlockJob
from services.block.worker import Reachable, Status
from services.monitoring.exporter import Target, write_targets
from services.rpc.security import Security
from services.run.plan import RunPlan
from services.run.user_code import UserCode
from services.trainer.ending import EarlyEnd
from services.trainer.engine import BroadcastTraffic, OnSteps
from services.trainer.fleet import Fleet
from services.trainer.local_engine import alignment_batch
from services.trainer.run_dir import targets_file
from services.trainer.stall import StallWatch
from services.trainer.stopping import StopRequest
from services.trainer.watch import TrainerWatch

START_LIVENESS = 3.0
"""A block may take this many times the liveness to start: it imports torch, loads data and builds the model."""


class RayEngine:
    """Runs each block in an actor of its own.

    Parameters
    ----------
    plan
        The run.
    run_dir
        The same path on every node.
    user_code
        The user's own files.
    watch
        The trainer's own metrics, listed with those of the blocks.
    """

    name = "ray"

    def __init__(self, plan: RunPlan, run_dir: Path, user_code: UserCode, watch: TrainerWatch) -> None:
        self._plan = plan
        self._watch = watch
        self._targets = targets_file(run_dir)
        self._run_dir = run_dir
        self._user_code = user_code
        self._blocks = len(plan.network.blocks)
        self._liveness = plan.specification.run.liveness_seconds
        self._fleet: Fleet | None = None
        self._samples = 0

    def start(self, resume_step: int | None) -> dict[str, Any]:
        """Place the actors, build the blocks, let them greet and connect, and load a checkpoint if there is one."""
        fleet = self._fleet = Fleet(self._plan.specification, self._blocks)
        patience = START_LIVENESS * self._liveness
        places = fleet.gather([actor.where.remote() for actor in fleet.actors], "start", patience)
        one_node = len({node for node, _, _ in places}) == 1
        security = Security.loopback() if one_node else Security.mutual_tls()
        hosts = ["127.0.0.1" if one_node else address for _, address, _ in places]
        run = secrets.token_hex(8)
        prepared = [
            actor.prepare.remote(self._job(index, run), security, hosts[index])
            for index, actor in enumerate(fleet.actors)
        ]
        reachable: list[Reachable] = fleet.gather(prepared, "prepare", patience)
        peers = [block.rpc for block in reachable]
        fleet.gather(fleet.compute("connect", peers), "connect", patience)
        fleet.gather(fleet.compute("wait_until_connected"), "connect", patience)
        if resume_step is not None:
            fleet.gather(fleet.compute("load", resume_step), "load the checkpoint", patience)
        self._announce(reachable)
        pids = {"trainer": os.getpid(), "blocks": [pid for _, _, pid in places]}
        return {"pids": pids, "nodes": len({node for node, _, _ in places})}

    def _job(self, index: int, run: str) -> BlockJob:
        plan = self._plan
        return BlockJob(
            run=run,
            run_dir=str(self._run_dir),
            index=index,
            specification=plan.specification.model_dump(),
            boundaries=plan.network.boundaries,
            input_shape=plan.example.shape,
            input_dtype=str(plan.example.dtype).removeprefix("torch."),
            task=plan.example.task,
            total_steps=plan.network.training.total_steps,
            evaluation_batches=len(evaluation_batches(plan.dataset.test, plan.order.microbatch_size)),
            user_code=self._user_code,
        )

    def _announce(self, reachable: list[Reachable]) -> None:
        """List the metrics of all processes where Prometheus looks."""
        choice = self._plan.specification.run.metrics
        if choice == "off":
            return
        trainer = self._watch.serve(ray.util.get_node_ip_address() if choice == "node" else "127.0.0.1")
        last, job = self._blocks - 1, self._run_dir.name
        blocks = [
            Target(
                address=block.metrics,
                job=job,
                role="head" if index == last else "block",
                block=str(index),
            )
            for index, block in enumerate(reachable)
            if block.metrics is not None
        ]
        self._targets.parent.mkdir(exist_ok=True)
        write_targets(self._targets, [*blocks, Target(address=trainer, job=job, role="trainer")])

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Let all blocks run their schedules, and hand on what the head reports."""
        fleet = self._require()
        watch = StallWatch(fleet, self._liveness)
        end = EarlyEnd(fleet, stop)

        def report() -> None:
            finished = fleet.ask_one(self._blocks - 1, "finished_steps")
            if finished:
                on_steps(finished)

        def tick() -> None:
            report()
            end.look()
            watch.look()

        reached = self._drive(fleet, "run_steps", (first_step, last_step), tick)
        report()
        if len(set(reached)) > 1:
            raise LowdimfaError(f"the blocks ended at different steps: {reached}")
        self._samples += (reached[0] - first_step) * self._plan.order.batch_size
        return int(reached[0])

    def evaluate(self) -> Evaluation:
        """Pass the test split through all blocks; the head counts."""
        fleet = self._require()
        totals: Evaluation = self._drive(fleet, "evaluate", (), StallWatch(fleet, self._liveness).look)[-1]
        return totals

    def _drive(
        self, fleet: Fleet, method: str, arguments: tuple[Any, ...], tick: Callable[[], None]
    ) -> list[Any]:
        references = fleet.compute(method, *arguments)
        try:
            return fleet.gather(references, method.replace("_", " "), float("inf"), tick)
        except LowdimfaError as error:
            raise fleet.abort(references, error) from error

    def align(self) -> Alignment:
        """Gather all blocks' states in this process and compare their updates with the true gradients."""
        fleet, plan = self._require(), self._plan
        states = fleet.gather(fleet.compute("state"), "give its state", START_LIVENESS * self._liveness)
        network = plan.network
        with computing_threads(plan.specification.placement.threads_per_block):
            blocks, head = build_stages(network.blocks, network.feedback, network.training, plan.dataset.task)
            for stage, (tensors, scalars) in zip((*blocks, head), states, strict=True):
                stage.load({name: value.cpu() for name, value in tensors.items()}, scalars)
            return measure_alignment(blocks, head, *alignment_batch(plan))

    def save(self, directory: Path, step: int) -> list[dict[str, Any]]:
        """Let every block write its own state."""
        fleet = self._require()
        references = fleet.compute("save", str(directory), step)
        return fleet.gather(references, "save", START_LIVENESS * self._liveness)

    def traffic(self) -> BroadcastTraffic:
        """Return what the first block received; every subscriber receives the same."""
        if self._blocks == 1 or not self._samples:
            return BroadcastTraffic()
        fleet = self._require()
        status: Status = fleet.ask_one(0, "status")
        return BroadcastTraffic(
            status.broadcast.payload_bytes / self._samples, status.broadcast.wire_bytes / self._samples
        )

    def close(self) -> None:
        """End all actors."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None
            with contextlib.suppress(OSError):
                self._targets.unlink(missing_ok=True)

    def _require(self) -> Fleet:
        if self._fleet is None:
            raise LowdimfaError("the engine was not started")
        return self._fleet
