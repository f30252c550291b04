"""Real blocks with next to nothing to compute: what transport and scheduling cost, and how much memory a block takes."""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.transport.remote import Remote, each, processes, resident_bytes
from lowdimfa.build import build_stages
from lowdimfa.network import DecoupledNetwork
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.trainer import InProcessTrainer

SAMPLES, WIDTH, MICROBATCHES = 64, 256, 4
"""A micro-batch's activation has 64 × 256 float32 values: 64 KB."""


def specification(blocks: int, steps: int, transport: str, staleness: int = 0) -> dict[str, Any]:
    """Return the specification of a run whose blocks have one small layer each."""
    return {
        "model": {
            "factory": "lowdimfa.models:mlp",
            "args": {"in_features": WIDTH, "width": WIDTH, "depth": blocks, "classes": 10},
            "blocks": blocks,
        },
        "data": {
            "factory": "lowdimfa.data:teacher",
            "args": {"samples": 2048, "in_features": WIDTH, "outputs": 10},
        },
        "train": {
            "steps": steps,
            "batch_size": SAMPLES * MICROBATCHES,
            "microbatches": MICROBATCHES,
            "staleness": staleness,
            "optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 1e-6}},
        },
        "run": {"evaluate_every_epochs": 0},
        "placement": {"transport": transport} if transport else {},
    }


class Block:
    """One block of a run, as its actor holds it."""

    def __init__(self, given: dict[str, Any], run: str, index: int, security: Security, folder: str) -> None:
        parsed = parse_specification(given, "the benchmark's specification")
        plan = make_run_plan(parsed)
        job = BlockJob.of(plan, Seat(index, 0), run, folder, UserCode())
        self._worker = BlockWorker(job, security, "127.0.0.1")
        self._in_flight = 0
        self._watch()

    def _watch(self) -> None:
        """Keep the highest number of micro-batches in flight that the block itself reports."""
        metrics, report = self._worker._metrics, self._worker._metrics.inflight

        def noted(microbatches: int) -> None:
            self._in_flight = max(self._in_flight, microbatches)
            report(microbatches)

        metrics.inflight = noted  # type: ignore[method-assign]

    def address(self) -> str:
        """Return where the block listens."""
        return self._worker.reachable.rpc

    def connect(self, peers: list[str]) -> None:
        """Connect to the others."""
        self._worker.connect(peers)

    def wait(self) -> None:
        """Wait until every block is connected."""
        self._worker.wait_until_connected()

    def run(self, first: int, last: int) -> dict[str, float]:
        """Run steps; return this process's seconds of processor time, of wall time, and its memory in bytes."""
        cpu, began = time.process_time(), time.perf_counter()
        self._worker.run_steps(first, last)
        return {
            "cpu": time.process_time() - cpu,
            "seconds": time.perf_counter() - began,
            "memory": resident_bytes(),
            "in_flight": self._in_flight,
        }

    def close(self) -> None:
        """Close all connections."""
        self._worker.close()


class Together:
    """The same network and data in one process, without any transport."""

    def __init__(self, given: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        plan = make_run_plan(parse_specification(given, "the benchmark's specification"))
        network = plan.network
        blocks, head = build_stages(network.blocks, network.feedback, network.training, plan.dataset.task)
        self._trainer = InProcessTrainer(
            DecoupledNetwork(blocks, head, network.feedback), plan.dataset, plan.order
        )

    def run(self, first: int, last: int) -> dict[str, float]:
        """Run steps; return this process's seconds of processor time and of wall time."""
        cpu, began = time.process_time(), time.perf_counter()
        self._trainer.run(first, last)
        return {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - began}

    def close(self) -> None:
        """There is nothing to close."""


def start(remotes: list[Remote]) -> None:
    """Connect the blocks of a run."""
    addresses = [remote.call("address") for remote in remotes]
    each(remotes, "connect", addresses)
    each(remotes, "wait")


def blocks_of(given: dict[str, Any], folder: str) -> list[tuple[Any, ...]]:
    """Return what makes each block of a run in a process of its own."""
    run, security = secrets.token_hex(4), Security.loopback()
    return [(Block, given, run, index, security, folder) for index in range(given["model"]["blocks"])]


def overhead(transport: str, blocks: int, steps: int, repeats: int) -> dict[str, Any]:
    """Return the processor time per micro-batch and block that a pipeline takes beyond the computation itself.

    Computation and pipeline take turns; each repetition's difference is one value, in milliseconds. The computation is
    done by as many processes at once as the pipeline has blocks: they contend for cores and caches as blocks do.
    """
    given = specification(blocks, (repeats + 1) * steps, transport)
    units = steps * MICROBATCHES * blocks / 1000
    found: dict[str, Any] = {
        "overhead_ms": [],
        "pipeline_ms": [],
        "computation_ms": [],
        "steps_per_second": [],
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        processes(
            *[(Together, given)] * blocks, *blocks_of(given, str(Path(folder) / "run"))
        ) as found_processes,
    ):
        together, remotes = found_processes[:blocks], found_processes[blocks:]
        start(remotes)
        for repeat in range(repeats + 1):
            span = repeat * steps, (repeat + 1) * steps
            alone = sum(part["cpu"] for part in each(together, "run", *span)) / (units * blocks)
            parts = each(remotes, "run", *span)
            if repeat:  # the first one warms everything up
                whole = sum(part["cpu"] for part in parts) / units
                found["computation_ms"].append(alone)
                found["pipeline_ms"].append(whole)
                found["overhead_ms"].append(whole - alone)
                found["steps_per_second"].append(steps / max(part["seconds"] for part in parts))
    return found


def memory(transport: str, blocks: int, early: int, late: int) -> dict[str, Any]:
    """Return the memory of a block in the middle after few and after many steps, and what was in flight at most."""
    given = specification(blocks, late, transport)
    with (
        tempfile.TemporaryDirectory() as folder,
        processes(*blocks_of(given, str(Path(folder) / "run"))) as remotes,
    ):
        start(remotes)
        first = each(remotes, "run", 0, early)[1]
        last = each(remotes, "run", early, late)[1]
    return {
        "blocks": blocks,
        "early_mib": first["memory"] / 2**20,
        "late_mib": last["memory"] / 2**20,
        "in_flight": last["in_flight"],
        "window": MICROBATCHES,
    }
