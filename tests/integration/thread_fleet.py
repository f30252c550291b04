"""All blocks of a run as workers in threads of this process: real schedules and real gRPC, without Ray's start-up."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowdimfa.head import Evaluation
from lowdimfa.services.block.building import make_topology
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification


class ThreadFleet:
    """Workers, and calls to all of them at once."""

    def __init__(
        self, specification: dict[str, Any], run_dir: Path, security: Security, whole: bool = True
    ) -> None:
        parsed = parse_specification(specification, "test")
        plan = make_run_plan(parsed, rehearsed=False, whole=whole)
        seats = make_topology(parsed, plan.network).seats
        self._pool = ThreadPoolExecutor(len(seats), thread_name_prefix="compute")
        run = secrets.token_hex(4)
        self.workers = [
            BlockWorker(BlockJob.of(plan, seat, run, str(run_dir), UserCode()), security, "127.0.0.1")
            for seat in seats
        ]

    def connect(self, peers: list[str] | None = None) -> None:
        """Connect all workers, by way of other addresses if given."""
        addresses = peers or [worker.reachable.rpc for worker in self.workers]
        self.each(lambda worker: worker.connect(addresses))
        self.each(lambda worker: worker.wait_until_connected())

    def each(self, call: Callable[[BlockWorker], Any], timeout: float = 120.0) -> list[Any]:
        """Call all workers at the same time; after the first failure the others are aborted."""
        futures = [self._pool.submit(call, worker) for worker in self.workers]
        return [future.result(timeout) for future in futures]

    def run(self, first_step: int, last_step: int) -> None:
        """Run some steps."""
        self.each(lambda worker: worker.run_steps(first_step, last_step))

    def evaluate(self) -> Evaluation:
        """Return the head's evaluation."""
        totals: Evaluation = self.each(lambda worker: worker.evaluate())[-1]
        return totals

    def model_state(self) -> dict[str, Any]:
        """Return a copy of the plain model's state."""
        return {
            name: value.clone()
            for worker in self.workers
            if worker.job.rank == 0
            for name, value in worker.stage.module.plain_state_dict().items()
        }

    def close(self) -> None:
        """Close all workers and threads."""
        for worker in self.workers:
            worker.close()
        self._pool.shutdown(wait=True)


@contextmanager
def thread_fleet(
    specification: dict[str, Any],
    run_dir: Path,
    *,
    connect: bool = True,
    security: Security | None = None,
    kind: Callable[..., ThreadFleet] = ThreadFleet,
) -> Iterator[ThreadFleet]:
    """Start workers for a specification, and end them."""
    fleet = kind(specification, run_dir, security or Security.loopback())
    try:
        if connect:
            fleet.connect()
        yield fleet
    finally:
        fleet.close()
