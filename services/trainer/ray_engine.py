"""Blocks in Ray actors: placement and control by Ray, micro-batches and errors over gRPC between the blocks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import ray

from lowdimfa.alignment import Alignment, measure_alignment
from lowdimfa.build import build_stages
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import computing_threads
from lowdimfa.services.block.worker import Status
from lowdimfa.services.monitoring.exporter import Target, write_targets
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.crew import Crew
from lowdimfa.services.trainer.ending import EarlyEnd
from lowdimfa.services.trainer.engine import BroadcastTraffic, OnSteps, Recovered, RecoveryPolicy
from lowdimfa.services.trainer.gathering import Gathering
from lowdimfa.services.trainer.local_engine import alignment_batch
from lowdimfa.services.trainer.run_dir import targets_file
from lowdimfa.services.trainer.silence import START_LIVENESS
from lowdimfa.services.trainer.stall import StallWatch
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.watch import TrainerWatch


class RayEngine:
    """Runs each block, or each replica of it, in an actor of its own.

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
        self._crew: Crew | None = None
        self._trainer_address: str | None = None
        self._samples = 0

    def start(self, resume_step: int | None) -> dict[str, Any]:
        """Place the actors, build the blocks, let them greet and connect, and load a checkpoint if there is one."""
        crew = self._crew = Crew(self._plan, self._run_dir, self._user_code)
        gathering = crew.start(resume_step)
        self._announce(gathering)
        pids = {"trainer": os.getpid(), "blocks": gathering.pids}
        return {"pids": pids, "nodes": len(set(gathering.nodes))}

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, checkpoint: int | None) -> Recovered:
        """Replace the lost blocks and bring all of them to one step."""
        crew = self._require()
        recovered = crew.recover(loss, policy, checkpoint)
        assert crew.gathering is not None
        self._announce(crew.gathering)
        self._samples = 0  # the blocks count the traffic of their present connections
        return recovered

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        """End all computation and keep every block's last words."""
        return loss if self._crew is None else self._crew.give_up(loss)

    def _announce(self, gathering: Gathering) -> None:
        """List the metrics of all processes where Prometheus looks."""
        choice = self._plan.specification.run.metrics
        if choice == "off":
            return
        if self._trainer_address is None:
            host = ray.util.get_node_ip_address() if choice == "node" else "127.0.0.1"
            self._trainer_address = self._watch.serve(host)
        seating, job = self._require().fleet.seating, self._run_dir.name
        blocks = [
            Target(
                address=block.metrics,
                job=job,
                role="head" if seat == seating.head else "block",
                block=str(seat.block),
                replica=str(seat.rank),
            )
            for seat, block in zip(seating.seats, gathering.reachable, strict=True)
            if block.metrics is not None
        ]
        write_targets(
            self._targets, [*blocks, Target(address=self._trainer_address, job=job, role="trainer")]
        )

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Let all blocks run their schedules, and hand on what the head reports."""
        crew = self._require()
        fleet = crew.fleet
        watch = StallWatch(fleet, self._liveness)
        end = EarlyEnd(fleet, stop)

        def report() -> None:
            finished = fleet.ask_one(fleet.head, "finished_steps")
            if finished:
                on_steps(finished)

        def tick() -> None:
            report()
            end.look()
            watch.look()

        try:
            reached = crew.drive("run_steps", (first_step, last_step), tick)
        finally:
            with contextlib.suppress(LowdimfaError):  # the head itself may be lost
                report()
        if len(set(reached)) > 1:
            raise LowdimfaError(f"the blocks ended at different steps: {reached}")
        self._samples += (reached[0] - first_step) * self._plan.order.batch_size
        return int(reached[0])

    def evaluate(self) -> Evaluation:
        """Pass the test split through all blocks; the head counts."""
        crew = self._require()
        totals: Evaluation = crew.drive("evaluate", (), StallWatch(crew.fleet, self._liveness).look)[-1]
        return totals

    def align(self) -> Alignment:
        """Gather all blocks' states in this process and compare their updates with the true gradients."""
        fleet, plan = self._require().fleet, self._plan
        seconds = START_LIVENESS * self._liveness
        states = fleet.compute_by_block("state", what="give its state", seconds=seconds)
        network = plan.network
        with computing_threads(plan.specification.placement.threads_per_block):
            blocks, head = build_stages(network.blocks, network.feedback, network.training, plan.dataset.task)
            for stage, state in zip((*blocks, head), states, strict=True):
                stage.load({name: value.cpu() for name, value in state.tensors.items()}, state.scalars)
            return measure_alignment(blocks, head, *alignment_batch(plan))

    def save(self, directory: Path, step: int) -> list[dict[str, Any]]:
        """Let every block's first replica write its state, which is that of all of them."""
        seconds = START_LIVENESS * self._liveness
        return self._require().fleet.compute_by_block("save", str(directory), step, seconds=seconds)

    def traffic(self) -> BroadcastTraffic:
        """Return what the first worker received; every subscriber receives the same."""
        if self._blocks == 1 or not self._samples:
            return BroadcastTraffic()
        fleet = self._require().fleet
        status: Status = fleet.ask_one(0, "status")
        return BroadcastTraffic(
            status.broadcast.payload_bytes / self._samples, status.broadcast.wire_bytes / self._samples
        )

    def close(self) -> None:
        """End all actors."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
            with contextlib.suppress(OSError):
                self._targets.unlink(missing_ok=True)

    def _require(self) -> Crew:
        if self._crew is None:
            raise LowdimfaError("the engine was not started")
        return self._crew
