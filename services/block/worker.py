"""One block's process: its layers, its server and connections, its compute thread. It knows nothing of Ray."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdimfa.build import build_block, build_head
from lowdimfa.data.base import BatchOrder
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation
from lowdimfa.network import StepResult
from lowdimfa.partition import BlockPlan
from lowdimfa.version import VERSION
from services.block.instructions import Policy
from services.block.job import BlockJob
from services.block.observer import Observer
from services.block.ports import BlockPorts, DataPort
from services.block.receiver import ActivationReceiver
from services.block.runner import BlockRunner, Inbox
from services.block.sender import ActivationSender
from services.broadcast.publisher import ErrorPublisher
from services.broadcast.subscriber import ErrorSubscriber
from services.monitoring.exporter import start_exporter
from services.monitoring.metrics import BlockMetrics
from services.monitoring.timeline import TimelineWriter
from services.rpc.handshake import HandshakeServicer, Hello, SampleType, greet
from services.rpc.protocol import TrafficCount
from services.rpc.security import Security
from services.rpc.server import RpcServer
from services.trainer.checkpoint import CheckpointStore, write_block
from services.trainer.plan import load_dataset
from services.trainer.state import load_stage, stage_state

PATIENCE_LIVENESS = 2.0
"""A block gives a wait up after this many times the liveness; the trainer, which sees all blocks, judges sooner."""


@dataclass(frozen=True)
class Reachable:
    """Where a block is reached: its gRPC server, and its metrics."""

    rpc: str
    metrics: str


@dataclass(frozen=True)
class Status:
    """What a block says when asked: steps applied, what it does, and the broadcast traffic so far."""

    applied_steps: int
    activity: str
    busy_since: float
    working: bool
    broadcast: TrafficCount


class BlockWorker:
    """Holds one block.

    Parameters
    ----------
    job
        Which block of which run.
    security
        The run's secrets.
    host
        Address of this machine as its neighbours reach it.
    """

    def __init__(self, job: BlockJob, security: Security, host: str) -> None:
        # gRPC's threads answer sooner when a thread in Python code gives way more often than every 5 ms.
        sys.setswitchinterval(0.0005)
        job.user_code.install()
        self.job = job
        self._security = security
        specification = job.parsed()
        self._specification = specification
        self._liveness = specification.run.liveness_seconds
        torch.set_num_threads(specification.placement.threads_per_block)
        network = job.network()
        self._network_plan = network
        plan = network.blocks[job.index]
        self.first, self.is_head = job.index == 0, job.index == len(network.blocks) - 1
        device = torch.device("cuda" if specification.placement.gpus_per_block else "cpu")
        self._data = self._draws_data()
        if self.is_head:
            task = self._dataset.task
            self.stage: Any = build_head(
                plan, network.shape, network.feedback, network.training, task, device
            )
        else:
            self.stage = build_block(plan, network.shape, network.feedback, network.training, device)
        self.inbox = Inbox()
        self._serve(plan, host)

    def _draws_data(self) -> DataPort | None:
        if not (self.first or self.is_head):
            return None
        train = self._specification.train
        self._dataset = load_dataset(self._specification)
        order = BatchOrder(len(self._dataset.train), train.batch_size, train.microbatches, train.seed)
        return DataPort(self._dataset, order)

    def _serve(self, plan: BlockPlan, host: str) -> None:
        job, blocks = self.job, len(self._network_plan.blocks)
        train = self._specification.train
        window = train.effective_window
        samples = max(train.batch_size // train.microbatches, 256)
        self._hello = Hello(
            software=VERSION,
            torch=torch.__version__,
            run=job.run,
            block=job.index,
            role="head" if self.is_head else "block",
            input=SampleType(str(plan.input_dtype).removeprefix("torch."), tuple(plan.input_shape)),
            output=SampleType(str(plan.output_dtype).removeprefix("torch."), tuple(plan.output_shape)),
            error_dim=self._network_plan.shape.error_dim,
            data=self._data.fingerprint() if self._data else "",
        )
        self._server = RpcServer(
            f"block-{job.index}", self._security, self._liveness, host, max_workers=2 * blocks + 8
        )
        receiver = publisher = None
        self._server.add(HandshakeServicer(self._hello))
        if not self.first:
            receiver = ActivationReceiver(
                job.run, job.index, job.index - 1, window, self.inbox.put, self.inbox.abort
            )
            receiver.expect(plan.input_shape, plan.input_dtype, samples)
            self._server.add(receiver)
        if self.is_head and blocks > 1:
            # Twice the window: each micro-batch in flight may have an error and a probe's response to replay.
            publisher = ErrorPublisher(job.run, blocks - 1, 2 * window + 2)
            self._server.add(publisher)
        self._ports = BlockPorts(self._data, receiver, publisher)
        self._subscriber: ErrorSubscriber | None = None
        self._server.start()
        self._counting = threading.Lock()
        self._counted = TrafficCount(0, 0, 0)
        self._counted_activations: dict[str, int] = {}
        self._metrics = BlockMetrics(job.name, str(job.index))
        self._exporter, port = start_exporter(self._metrics.registry, host)
        self.reachable = Reachable(self._server.address, f"{host}:{port}")
        self._make_runner(window)

    def _make_runner(self, window: int) -> None:
        train = self._specification.train
        policy = Policy(
            self.first,
            self.is_head,
            train.microbatches,
            window,
            train.staleness,
            self._network_plan.feedback.probe_interval,
        )
        path = Path(self.job.run_dir) / "timeline" / f"block-{self.job.index}.jsonl"
        self._timeline = TimelineWriter(path) if self._specification.run.timeline else None
        self.observer = Observer(
            self._metrics, self._timeline, train.batch_size // train.microbatches, train.microbatches
        )
        patience = PATIENCE_LIVENESS * self._liveness
        self.runner = BlockRunner(self.stage, policy, self.inbox, self._ports, self.observer, patience)

    def connect(self, peers: list[str]) -> None:
        """Greet the neighbours and the head, subscribe to the errors, and open the stream to the next block.

        Parameters
        ----------
        peers
            gRPC addresses of all blocks, in order.
        """
        index, head = self.job.index, len(peers) - 1
        for peer in sorted({index - 1, index + 1, head} & set(range(len(peers))) - {index}):
            greet(peers[peer], self._security, self._hello, self._liveness)
        if self.is_head:
            return
        self._subscriber = ErrorSubscriber(
            peers[head],
            self._security,
            self.job.run,
            index,
            self._network_plan.shape.error_dim,
            self._liveness,
            self.inbox.put,
            self.inbox.abort,
        )
        self._subscriber.start()
        sender = ActivationSender(
            peers[index + 1],
            self._security,
            self.job.run,
            index,
            index + 1,
            self._specification.train.effective_window,
            self._liveness,
            self.inbox.abort,
        )
        sender.start()
        self._ports.sender = sender

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        if self._ports.publisher is not None:
            self._ports.publisher.wait_for_subscribers(self._liveness)

    def run_steps(self, first_step: int, last_step: int) -> None:
        """Run the steps ``first_step <= t < last_step``."""
        torch.set_num_threads(
            self._specification.placement.threads_per_block
        )  # each thread has its own number
        self.runner.run(first_step, last_step)
        self._count_traffic()

    def evaluate(self) -> Evaluation:
        """Take part in an evaluation; only the head's result counts."""
        torch.set_num_threads(self._specification.placement.threads_per_block)
        return self.runner.evaluate(self.job.evaluation_batches)

    def finished_steps(self) -> list[StepResult]:
        """Return the steps that the head has finished since the last call."""
        steps = self.runner.finished_steps
        return [steps.popleft() for _ in range(len(steps))]

    def status(self) -> Status:
        """Say what the block does; any thread may ask."""
        self._count_traffic()
        activity = self.observer.activity
        working = activity.kind not in ("wait", "rest")
        return Status(self.observer.applied_steps, str(activity), activity.since, working, self._broadcast())

    def save(self, directory: str) -> dict[str, Any]:
        """Write the state into a checkpoint's directory and return its manifest entry."""
        return write_block(Path(directory), stage_state(self.stage))

    def load(self, step: int) -> None:
        """Take the state of a checkpoint."""
        load_stage(self.stage, CheckpointStore(Path(self.job.run_dir)).load(step))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state's tensors and plain data."""
        return self.stage.tensors(), self.stage.scalars()

    def abort(self, error: LowdimfaError) -> None:
        """End whatever the compute thread waits for."""
        self.inbox.abort(error)

    def _broadcast(self) -> TrafficCount:
        """Return what this block received of the error broadcast, or sent of it if it is the head."""
        source = self._ports.publisher or self._subscriber
        return source.traffic.count() if source is not None else TrafficCount(0, 0, 0)

    def _count_traffic(self) -> None:
        """Bring the metrics up to the connections' own counts."""
        with self._counting:
            now = self._broadcast()
            grown = [after - before for after, before in zip(now, self._counted, strict=True)]
            self._metrics.broadcast("sent" if self.is_head else "received", *grown)
            self._counted = now
            for direction, end in (("sent", self._ports.sender), ("received", self._ports.receiver)):
                if end is not None:
                    total = end.traffic.count().payload_bytes
                    self._metrics.activation(direction, total - self._counted_activations.get(direction, 0))
                    self._counted_activations[direction] = total

    def close(self) -> None:
        """Close every connection and write out what is buffered."""
        if self._ports.sender is not None:
            self._ports.sender.close()
        if self._ports.publisher is not None:
            self._ports.publisher.close()
        if self._subscriber is not None:
            self._subscriber.close()
        if self._ports.receiver is not None:
            self._ports.receiver.close()
        self._server.stop(grace=1.0)
        self._exporter.close()
        if self._timeline is not None:
            self._timeline.close()
