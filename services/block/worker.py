"""One block's process: its layers, its data, its connections, its compute thread. It knows nothing of Ray."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.build import build_block, build_head
from lowdimfa.data.base import BatchOrder
from lowdimfa.errors import LowdimfaError
from lowdimfa.head import Evaluation, Head
from lowdimfa.network import StepResult
from lowdimfa.partition import BlockPlan
from lowdimfa.version import VERSION
from services.block.activations import SampleLimit
from services.block.data_port import DataPort
from services.block.inbox import Inbox
from services.block.instructions import EndAt, Policy
from services.block.job import BlockJob
from services.block.links import Links
from services.block.observer import Observer
from services.block.runner import BlockRunner
from services.monitoring.exporter import Exporter, start_exporter
from services.monitoring.metrics import BlockMetrics
from services.monitoring.timeline import TimelineWriter
from services.rpc.handshake import Hello, SampleType
from services.rpc.protocol import TrafficCount
from services.rpc.security import Security
from services.run.checkpoint import CheckpointStore, write_block
from services.run.plan import NetworkPlan, load_dataset
from services.run.state import load_stage, stage_state

PATIENCE_LIVENESS = 2.0
"""A block gives a wait up after this many times the liveness; the trainer, which sees all blocks, judges sooner."""

EVALUATION_SAMPLES = 256
"""An evaluation's batches have at least this many samples."""


@dataclass(frozen=True)
class Reachable:
    """Where a block is reached: its gRPC server, and its metrics if it serves any."""

    rpc: str
    metrics: str | None


@dataclass(frozen=True)
class Status:
    """What a block says when asked.

    Attributes
    ----------
    applied_steps
        Optimiser steps that it has applied.
    activity
        What it does, in words.
    since
        Unix seconds since when.
    working
        Whether it computes or sends, and so may hold others up.
    broadcast
        Traffic of the error broadcast so far.
    """

    applied_steps: int
    activity: str
    since: float
    working: bool
    broadcast: TrafficCount


class BlockWorker:
    """Holds one block. `run_steps`, `evaluate`, `save` and `load` belong to one thread; any thread may call the rest.

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
        self._specification = job.parsed()
        self._use_threads()
        network = job.network()
        plan = network.blocks[job.index]
        data = self._draw_data(len(network.blocks))
        self.stage = self._build(plan, network, data)
        self._inbox = Inbox()
        self._links = self._connections(plan, network, data, security, host)
        self._metrics = BlockMetrics(job.name, str(job.index))
        self._links.report_lags(self._metrics)
        self._exporter, address = self._serve_metrics(host)
        self.reachable = Reachable(self._links.address, address)
        self._timeline = self._open_timeline()
        self._observer = self._observe()
        self.runner = BlockRunner(
            self.stage,
            self._policy(network),
            self._inbox,
            self._links,
            data,
            self._observer,
            PATIENCE_LIVENESS * self._specification.run.liveness_seconds,
        )

    def _draw_data(self, blocks: int) -> DataPort | None:
        if self.job.index not in (0, blocks - 1):
            return None
        train = self._specification.train
        dataset = load_dataset(self._specification)
        return DataPort(
            dataset, BatchOrder(len(dataset.train), train.batch_size, train.microbatches, train.seed)
        )

    def _build(self, plan: BlockPlan, network: NetworkPlan, data: DataPort | None) -> Block | Head:
        device = torch.device("cuda" if self._specification.placement.gpus_per_block else "cpu")
        if plan.index < len(network.blocks) - 1:
            return build_block(plan, network.shape, network.feedback, network.training, device)
        assert data is not None, "the head draws targets"
        return build_head(plan, network.shape, network.feedback, network.training, data.task, device)

    def _connections(
        self, plan: BlockPlan, network: NetworkPlan, data: DataPort | None, security: Security, host: str
    ) -> Links:
        train, blocks = self._specification.train, len(network.blocks)
        mine = Hello(
            software=VERSION,
            torch=torch.__version__,
            run=self.job.run,
            block=plan.index,
            role="head" if plan.index == blocks - 1 else "block",
            input=_sample_type(plan.input_dtype, plan.input_shape),
            output=_sample_type(plan.output_dtype, plan.output_shape),
            error_dim=network.shape.error_dim,
            data="" if data is None else data.fingerprint(),
        )
        samples = max(train.batch_size // train.microbatches, EVALUATION_SAMPLES)
        return Links(
            mine,
            blocks,
            SampleLimit(tuple(plan.input_shape), plan.input_dtype, samples),
            train.effective_window,
            security=security,
            host=host,
            liveness=self._specification.run.liveness_seconds,
            inbox=self._inbox,
        )

    def _serve_metrics(self, host: str) -> tuple[Exporter | None, str | None]:
        choice = self._specification.run.metrics
        if choice == "off":
            return None, None
        address = host if choice == "node" else "127.0.0.1"
        exporter, port = start_exporter(self._metrics.registry, address)
        return exporter, f"{address}:{port}"

    def _open_timeline(self) -> TimelineWriter | None:
        path = Path(self.job.run_dir) / "timeline" / f"block-{self.job.index}.jsonl"
        return TimelineWriter(path) if self._specification.run.timeline else None

    def _observe(self) -> Observer:
        train = self._specification.train
        return Observer(
            self._metrics,
            self._timeline,
            train.batch_size // train.microbatches,
            train.microbatches,
            lambda: self._links.count_into(self._metrics),
        )

    def _policy(self, network: NetworkPlan) -> Policy:
        train = self._specification.train
        return Policy(
            first=self.job.index == 0,
            head=self.job.index == len(network.blocks) - 1,
            microbatches=train.microbatches,
            window=train.effective_window,
            staleness=train.staleness,
            probe_every=network.feedback.probe_interval,
        )

    def _use_threads(self) -> None:
        """Set torch's number of threads, which each thread that computes has its own of."""
        torch.set_num_threads(self._specification.placement.threads_per_block)

    def connect(self, peers: list[str]) -> None:
        """Connect to the neighbours and the head; ``peers`` are the gRPC addresses of all blocks, in order."""
        self._links.connect(peers)

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        self._links.wait_until_connected()

    def run_steps(self, first_step: int, last_step: int) -> int:
        """Run the steps ``first_step <= t < last_step``, or fewer if `end_at` says so; return the step reached."""
        self._use_threads()
        return self.runner.run(first_step, last_step)

    def end_at(self, step: int) -> None:
        """End the present run of steps before a step, or as soon after it as what was begun allows."""
        self._inbox.put(EndAt(step))

    def ends_at(self) -> int | None:
        """Return the step at which `end_at` has made the present run end, or None before the block heard of it."""
        return self.runner.ends_at

    def evaluate(self) -> Evaluation:
        """Take part in an evaluation; only the head's result counts."""
        self._use_threads()
        return self.runner.evaluate(self.job.evaluation_batches)

    def finished_steps(self) -> list[StepResult]:
        """Return the steps that the head has finished since the last call."""
        steps = self.runner.finished_steps
        return [steps.popleft() for _ in range(len(steps))]

    def status(self) -> Status:
        """Say what the block does."""
        activity = self._observer.activity
        working = activity.kind not in ("wait", "rest")
        return Status(
            self._observer.applied_steps, str(activity), activity.since, working, self._links.broadcast()
        )

    def save(self, directory: str, step: int) -> dict[str, Any]:
        """Write the state after a step into a checkpoint's directory and return its manifest entry."""
        return write_block(Path(directory), stage_state(self.stage, step))

    def load(self, step: int) -> None:
        """Take the state of a checkpoint."""
        load_stage(self.stage, CheckpointStore(Path(self.job.run_dir)).load(step))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state's tensors and plain data."""
        return self.stage.tensors(), self.stage.scalars()

    def abort(self, error: LowdimfaError) -> None:
        """End whatever the compute thread waits for."""
        self._inbox.abort(error)

    def close(self) -> None:
        """Close every connection and write out what is buffered."""
        self._links.close()
        if self._exporter is not None:
            self._exporter.close()
        if self._timeline is not None:
            self._timeline.close()


def _sample_type(dtype: torch.dtype, shape: tuple[int, ...]) -> SampleType:
    return SampleType(str(dtype).removeprefix("torch."), tuple(shape))
