"""Blocks in Ray actors: placement and control by Ray, micro-batches and errors over gRPC between the blocks."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray

from lowdimfa.alignment import Alignment, measure_alignment
from lowdimfa.build import build_stages
from lowdimfa.errors import BlockLostError, LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import computing_threads
from lowdimfa.services.block.job import evaluation_times
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.monitoring.targets import Target, write_targets
from lowdimfa.services.recovery.policy import RecoveryPolicy
from lowdimfa.services.run.checkpoint import Attempt
from lowdimfa.services.run.mirror import work_dir
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import Place
from lowdimfa.services.run.training import use_own_threads
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.engine import BroadcastTraffic, OnSteps, Recovered, Saved
from lowdimfa.services.trainer.local_engine import alignment_batch
from lowdimfa.services.trainer.postmortem import write_postmortem
from lowdimfa.services.trainer.ray_writing import RayWriting
from lowdimfa.services.trainer.rescue import Rescue
from lowdimfa.services.trainer.run_dir import targets_file
from lowdimfa.services.trainer.stopping import StopRequest
from lowdimfa.services.trainer.ticks import EarlyEnd, StallWatch
from lowdimfa.services.trainer.watch import TrainerWatch
from lowdimfa.services.trainer.worker_group import Connected, WorkerGroup


class RayEngine:
    """Runs each block, or each replica of it, in an actor of its own.

    Parameters
    ----------
    plan
        The run.
    place
        Of the run: the same path on every node, or an address.
    user_code
        The user's own files.
    watch
        The trainer's own metrics, listed with those of the blocks.
    """

    name = "ray"
    recovers = True

    def __init__(self, plan: RunPlan, place: Place, user_code: UserCode, watch: TrainerWatch) -> None:
        self._plan = plan
        self._watch = watch
        self._place, self._folder = place, work_dir(place)
        self._targets = targets_file(place)
        self._user_code = user_code
        self._blocks = len(plan.network.blocks)
        self._group: WorkerGroup | None = None
        self._rescue: Rescue | None = None
        self._trainer_address: str | None = None
        self._samples = 0

    def start(self, resume_step: int | None) -> dict[str, Any]:
        """Place the workers, build the blocks, let them greet and connect, and load a checkpoint if there is one."""
        group = self._group = WorkerGroup(self._plan, self._place, self._user_code)
        rescue = self._rescue = Rescue(group, self._plan.specification.run.on_failure == "rejoin")
        connected = group.start(resume_step)
        rescue.keep_snapshots()
        self._announce(group, connected)
        pids = {"trainer": os.getpid(), "blocks": connected.pids}
        return {"pids": pids, "nodes": len(set(connected.nodes))}

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        """Replace the lost blocks and bring all of them to one step."""
        group = self._require()
        assert self._rescue is not None
        recovered = self._rescue.recover(loss, policy, saved)
        assert group.connected is not None
        self._announce(group, group.connected)
        self._samples = 0  # the blocks count the traffic of their present connections
        return recovered

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        """End all computation and keep every block's last words."""
        if self._group is None or self._rescue is None:
            return loss
        self._rescue.close()
        self._rescue.show_stacks(loss)
        if self._group.connected is not None:
            write_postmortem(self._folder, self._group, loss)
        return self._group.abort(loss)

    def _announce(self, group: WorkerGroup, connected: Connected) -> None:
        """List the metrics of all processes where Prometheus looks."""
        choice = self._plan.specification.run.metrics
        if choice == "off":
            return
        if self._trainer_address is None:
            host = ray.util.get_node_ip_address() if choice == "node" else "127.0.0.1"
            self._trainer_address = self._watch.serve(host)
        job = self._folder.name
        blocks = [
            Target(
                address=block.metrics,
                job=job,
                role="head" if worker is group.head else "block",
                block=str(worker.seat.block),
                replica=str(worker.seat.rank),
            )
            for worker, block in zip(group.workers, connected.reachable, strict=True)
            if block.metrics is not None
        ]
        write_targets(
            self._targets, [*blocks, Target(address=self._trainer_address, job=job, role="trainer")]
        )

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        """Let all blocks run their schedules, and hand on what the head reports."""
        group = self._require()
        watch = StallWatch(group)
        end = EarlyEnd(group, stop)

        def report() -> None:
            finished = group.ask_one(group.head, BlockWorker.finished_steps)
            if finished:
                on_steps(finished)

        def tick() -> None:
            report()
            end.look()
            watch.look()

        lost: int | None = None
        try:
            reached = group.drive(tick, BlockWorker.run_steps, first_step, last_step)
        except BlockLostError as loss:
            lost = loss.block
            raise
        finally:
            if lost != group.head.seat.block:  # that would only be waited for once more
                with contextlib.suppress(LowdimfaError):
                    report()
        if len(set(reached)) > 1:
            raise LowdimfaError(f"the blocks ended at different steps: {reached}")
        drawn = self._plan.order.drawn
        self._samples += drawn(reached[0]) - drawn(first_step)
        return reached[0]

    def evaluate(self) -> Evaluation:
        """Pass the test split through all blocks; the head counts."""
        group = self._require()
        order = self._plan.order
        times = evaluation_times(order.evaluation_size, order.microbatch_size)
        return group.drive(StallWatch(group, times * group.liveness).look, BlockWorker.evaluate)[-1]

    def align(self) -> Alignment:
        """Gather all blocks' states in this process and compare their updates with the true gradients."""
        plan = self._plan
        states = self._require().compute_by_block("give its state", BlockWorker.state)
        network = plan.network
        with computing_threads(plan.specification.placement.threads_of(0)):
            blocks, head = build_stages(network.blocks, network.feedback, network.training, plan.dataset.task)
            use_own_threads([*blocks, head], plan.specification.placement)
            for stage, state in zip((*blocks, head), states, strict=True):
                stage.load(*state)
            return measure_alignment(blocks, head, *alignment_batch(plan))

    def save(self, attempt: Attempt, step: int, copy: bool) -> RayWriting:
        """Let every block's first replica write its state, which is that of all of them."""
        group = self._require()
        group.compute_by_block("save", BlockWorker.save, attempt, step, copy)
        return RayWriting([group.workers[number] for number in group.topology.leaders])

    def traffic(self) -> BroadcastTraffic:
        """Return what the first subscriber received; all receive the same. A block that learns nothing is none."""
        group = self._require()
        if not group.topology.subscribers:
            return BroadcastTraffic()
        if not self._samples:  # since the start, or a recovery, at the run's last step
            return BroadcastTraffic(None, None)
        first = group.topology.number(group.topology.subscribers[0])
        status = group.ask_one(group.workers[first], BlockWorker.status)
        return BroadcastTraffic(
            status.broadcast.payload_bytes / self._samples, status.broadcast.wire_bytes / self._samples
        )

    def close(self) -> None:
        """End all actors."""
        if self._group is not None and self._rescue is not None:
            self._rescue.close()
            self._group.close()
            self._group = self._rescue = None
            with contextlib.suppress(OSError):
                self._targets.unlink(missing_ok=True)

    def _require(self) -> WorkerGroup:
        if self._group is None:
            raise LowdimfaError("the engine was not started")
        return self._group
