"""One block's process: its layers, its data, its connections, its compute thread. It knows nothing of Ray."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lowdimfa.encoding import State
from lowdimfa.errors import LowdimfaError, StorageError
from lowdimfa.head import Evaluation
from lowdimfa.network import StepResult
from lowdimfa.services.block.building import (
    Own,
    Source,
    build_stage,
    describe,
    draw_data,
    error_limit,
    make_policy,
    make_topology,
    restore,
    sample_limits,
    windows_of,
)
from lowdimfa.services.block.devices import copies_for
from lowdimfa.services.block.exchange import Exchange
from lowdimfa.services.block.instructions import EndAt, Halt, RunUpdate
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.links import Links
from lowdimfa.services.block.mailboxes import Inbox, delivery_for
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.reports import LastWords, Reachable, Status, stacks
from lowdimfa.services.block.runner import BlockRunner
from lowdimfa.services.block.snapshot import Snapshot, SnapshotShelf
from lowdimfa.services.block.summation import Layout
from lowdimfa.services.block.work import Neighbours, Work
from lowdimfa.services.monitoring.exporter import Exporter, start_exporter
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.monitoring.timeline import TimelineWriter
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.run.background import Writer
from lowdimfa.services.run.checkpoint import Attempt
from lowdimfa.services.run.mirror import Mirror, files_of, work_dir
from lowdimfa.services.run.state import Unwanted, Write, copied, saving
from lowdimfa.services.stream.carriers import Here, carrier_class
from lowdimfa.services.stream.resumable import Arriving, as_it_came


class BlockWorker:
    """Holds one block. `run_steps`, `evaluate`, `save`, `reopen` and `load` belong to one thread; any may call the rest.

    Who derives from it changes its parts, which `_work`, `_arriving` and `_write` make: its own methods are what is
    called.

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
        network, run_dir, run = job.network(), work_dir(job.run_dir), self._specification.run
        self._topology = make_topology(self._specification, network)
        self._windows = windows_of(self._specification)
        self._stem = self._topology.file_stem(job.seat)
        self._data = draw_data(job, network)
        self._hello = describe(job, network, self._data)
        self._limits, self._policy = sample_limits(job, network), make_policy(job, network)
        self._error_limit = error_limit(network)
        self._snapshots = SnapshotShelf(run.snapshot_every) if run.on_failure == "rejoin" else None
        self._metrics = BlockMetrics(job.name, str(job.index), str(job.rank))
        self._exporter, self._metrics_address = self._serve_metrics()
        timeline = run_dir / "timeline" / f"{self._stem}.jsonl"
        self._timeline = TimelineWriter(timeline) if run.timeline else None
        self._mirror = Mirror(job.run_dir, files_of(self._stem).__contains__, run.liveness_seconds)
        self._mirror.keep_up()
        self._writer = Writer[dict[str, Any]](f"checkpoint of {self._stem}", run.liveness_seconds)
        self._observer = self._observe()
        self.stage, self._fresh = build_stage(job, network, self._data), True
        self._carrier = carrier_class(self._specification.placement.transport)
        self._copies = copies_for(self.stage.device, self._carrier.direct)
        self._open(job.run, security, host)

    def _open(self, run: str, security: Security, host: str) -> None:
        """Make connections, and with them a new compute loop, under an identifier that no earlier message has."""
        self._inbox = Inbox()
        seat, window = self.job.seat, self._windows[self.job.index]
        liveness, insecure = (
            self._specification.run.liveness_seconds,
            self._specification.placement.insecure_activations,
        )
        here = Here(seat.block, host, liveness, self.stage.device, insecure)
        self._outbox = delivery_for(self._copies, self._stem, window, self._inbox.abort)
        self._links = Links(
            replace(self._hello, run=run),
            self._topology,
            seat,
            self._limits,
            self._windows,
            Layout(self.stage, self._topology.replicas[seat.block]).largest_message,
            self._error_limit,
            security=security,
            carrier=self._carrier(here),
            inbox=self._inbox,
            arriving=self._arriving(),
            evaluating=self.job.evaluating,
        )
        self._links.counts.report_lags(self._metrics, self._topology)
        self.reachable = Reachable(self._links.address, self._metrics_address)
        self._assemble()

    def _assemble(self) -> None:
        patience, exchange = self._links.patience, None
        if self._topology.siblings(self.job.seat):
            exchange = Exchange(self.stage, self._topology, self.job.seat, self._links)
        self.runner = BlockRunner(
            self._work(self._links, patience),
            self._policy,
            self._inbox,
            self._links,
            self._observer,
            self._specification.run.liveness_seconds,
            patience,
            exchange,
            self.job.evaluating,
        )

    def _work(self, neighbours: Neighbours, patience: float, make: Callable[..., Work] = Work) -> Work:
        """Return what computes, and sends by way of neighbours."""
        kept = self._snapshots, patience
        return make(self.stage, neighbours, self._data, self._observer, *kept, self._copies, self._outbox)

    def _arriving(self) -> Arriving:
        """Return what the network makes of a frame on its way here."""
        return as_it_came

    def _write(self, attempt: Attempt, step: int, write: Write, unwanted: Unwanted) -> dict[str, Any]:
        """Write the state after a step and return its manifest entry, in a thread that does nothing else."""
        entry = write(unwanted)
        self._mirror.update()  # what it can't copy now, it copies next time
        return entry

    def _serve_metrics(self) -> tuple[Exporter | None, str | None]:
        choice = self._specification.run.metrics
        if choice == "off":
            return None, None
        # Not that of the connections: blocks on one machine have theirs on loopback, where nobody else can read.
        address = self.job.node if choice == "node" else "127.0.0.1"
        exporter, port = start_exporter(self._metrics.registry, address)
        return exporter, f"{address}:{port}"

    def _observe(self) -> Observer:
        return Observer(self._metrics, self._timeline, lambda: self._links.counts.count_into(self._metrics))

    def _use_threads(self) -> None:
        """Set torch's number of threads, which each thread that computes has its own of."""
        torch.set_num_threads(self._specification.placement.threads_of(self.job.index))

    def connect(self, peers: list[str]) -> None:
        """Connect to the neighbours and the head; ``peers`` are the gRPC addresses of all workers, in order."""
        self._links.connect(peers)

    def wait_until_connected(self) -> None:
        """In the head, wait until every block is subscribed."""
        self._links.wait_until_connected()

    def reopen(self, run: str, security: Security, host: str) -> Reachable:
        """Close all connections and listen anew, because another block was lost.

        Parameters
        ----------
        run
            New identifier of the run: what is still on its way under the old one is refused.
        security, host
            As for a new worker.
        """
        self._links.close(grace=0)
        self._outbox.close()
        self._open(run, security, host)
        return self.reachable

    def load(self, step: int, source: Source) -> None:
        """Take a state as that after a step; what was begun and not applied is dropped.

        Raises
        ------
        InputError
            The checkpoint is missing or damaged.
        """
        has = self._observer.applied_steps if isinstance(source, Own) else source.step or 0
        state = copied(self.stage.state()) if isinstance(source, Own) else source
        if not self._fresh:
            # The device may have no room for two of it, and what refers to each other is freed by the collector alone.
            del self.runner, self.stage
            gc.collect()
            self.stage = build_stage(self.job, self.job.network(), self._data)
        self._fresh = False
        restore(self.stage, state, self.job.run_dir, step - has)
        if not isinstance(source, Own):
            self._observer.finished.clear()  # of a course of the run that is given up
        self._observer.rest(step)
        self._assemble()

    def run_steps(self, first_step: int, last_step: int) -> int:
        """Run the steps ``first_step <= t < last_step``, or fewer if told so; return the step reached."""
        self._use_threads()
        self._fresh = False
        return self.runner.run(first_step, last_step)

    def end_at(self, step: int) -> None:
        """End the present run of steps before a step, or as soon after it as what was begun allows."""
        self._inbox.put(EndAt(step))

    def ends_at(self) -> int | None:
        """Return the step at which `end_at` has made the present run end, or None before the block heard of it."""
        return self.runner.ends_at

    def halt(self, through: RunUpdate | None) -> None:
        """Come to rest after the updates up to an error that comes, or with None after those whose errors are here."""
        self._inbox.put(Halt(through))
        self._links.drop()

    def published(self) -> RunUpdate | None:
        """Return the last error that the head has broadcast in the run of steps that has ended."""
        return self.runner.published

    def evaluate(self) -> Evaluation:
        """Take part in an evaluation; only the head's result counts."""
        self._use_threads()
        return self.runner.evaluate(self.job.evaluation_batches)

    def finished_steps(self) -> list[StepResult]:
        """Return the steps that the head has finished since the last call."""
        finished = self._observer.finished
        return [finished.popleft() for _ in range(len(finished))]

    def status(self) -> Status:
        """Say what the block does."""
        return self._observer.status(self._links.counts.broadcast())

    def last_words(self) -> LastWords:
        """Say everything that helps to understand why the run ended."""
        queues = {"inbox": len(self._inbox)} | self._links.counts.queues()
        return LastWords(str(self._observer.activity), tuple(self._observer.recent), queues, stacks())

    def next_snapshot(self, kept: int, patience: float) -> Snapshot | None:
        """Return the snapshot after the one of step ``kept``, or None if there is none within ``patience`` seconds."""
        return None if self._snapshots is None else self._snapshots.fetch(kept, patience)

    def save(self, attempt: Attempt, step: int, copy: bool) -> None:
        """Begin to write the state after a step into a checkpoint; without a copy of it the block has to rest meanwhile.

        Raises
        ------
        StorageError
            The file of a checkpoint that was given up is still being written.
        """
        if not self._writer.end():  # before a copy is made: there is room for one
            block = self.job.index
            raise StorageError(f"block {block} still writes the checkpoint before", block=block, step=step)
        write = saving(self.stage, attempt, step, copy)
        self._writer.begin(partial(self._write, attempt, step, write))

    def saved(self, patience: float) -> dict[str, Any] | None:
        """Return the manifest entry of what `save` began, or None if it is not written within ``patience`` seconds.

        Raises
        ------
        LowdimfaError
            The file can't be written, or the weights aren't finite.
        """
        return self._writer.written(patience)

    def state(self) -> State:
        """Return a copy of the block's state in the host's memory, for a process that may have no such device."""
        return copied(self.stage.state())

    def abort(self, error: LowdimfaError) -> None:
        """End whatever the compute thread waits for."""
        self._inbox.abort(error)
        self._links.abort(error)

    def close(self) -> None:
        """Close every connection and write out what is buffered."""
        self._links.close()
        self._outbox.close()
        if self._data is not None:
            self._data.close()
        if self._exporter is not None:
            self._exporter.close()
        if self._timeline is not None:
            self._timeline.close()
        self._mirror.close()
