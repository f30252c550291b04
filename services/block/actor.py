"""A block as a Ray actor: placement, lifecycle and control; micro-batches never pass through Ray."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray

from lowdimfa.errors import LowdimfaError
from services.block.job import BlockJob
from services.block.worker import BlockWorker, Reachable
from services.rpc.security import Security
from services.run.process_log import keep_output, log_file

T = TypeVar("T")


def guarded(call: Callable[[], T]) -> T | LowdimfaError:
    """Return a typed error instead of raising it: it crosses to the trainer whole, without Ray's wrapping.

    Where any error came from is printed, since the user's own layers and data run here.
    """
    try:
        return call()
    except LowdimfaError as error:
        traceback.print_exception(error)
        return error
    except Exception as error:
        traceback.print_exception(error)
        raise


class BlockHost:
    """Runs one `BlockWorker`. Control calls go to the group ``io``, so they answer while compute runs."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._worker: BlockWorker | None = None

    @ray.method(concurrency_group="io")
    def where(self) -> tuple[str, str, int]:
        """Return node id, node address and process id."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid()

    @ray.method(concurrency_group="compute")
    def prepare(self, job: BlockJob, security: Security, host: str) -> Reachable | LowdimfaError:
        """Build the block and start its server. What the process prints goes to the run's logs from here on."""

        def build() -> Reachable:
            keep_output(log_file(Path(job.run_dir), self._stem))
            # Whoever takes this process for stuck can see where it stands, even if nothing in it answers any more.
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
            faulthandler.enable(file=2)
            self._worker = BlockWorker(job, security, host)
            return self._worker.reachable

        return guarded(build)

    @ray.method(concurrency_group="compute")
    def compute(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker in the thread that owns the weights."""
        return guarded(lambda: getattr(self._require(), method)(*arguments))

    @ray.method(concurrency_group="io")
    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker that any thread may call."""
        return guarded(lambda: getattr(self._require(), method)(*arguments))

    def _require(self) -> BlockWorker:
        if self._worker is None:
            raise LowdimfaError(f"{self._stem} was asked before it was prepared")
        return self._worker


BlockActor: Any = ray.remote(concurrency_groups={"io": 4, "compute": 1}, max_restarts=0, max_task_retries=0)(
    BlockHost
)
"""The actor class; each of its methods is called with ``.remote``."""
