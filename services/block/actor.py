"""A block as a Ray actor: placement, lifecycle and control; micro-batches never pass through Ray."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray

from lowdimfa.errors import LowdimfaError, StorageError, unforeseen
from lowdimfa.services.block.faults import worker_for
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.reports import Reachable
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.mirror import fetch, files_of, work_dir
from lowdimfa.services.run.process_log import keep_output, log_file

P = ParamSpec("P")
T = TypeVar("T")


class BlockHost:
    """Runs one `BlockWorker`. Control calls go to the group ``io``, so they answer while compute runs.

    What a call carries is the worker's method itself, such as ``BlockWorker.run_steps``, which travels by its name:
    so the type checker sees both ends of it.

    Parameters
    ----------
    seat
        Which worker of the run this is.
    name, stem
        What it is called in messages, and in names of files.
    """

    def __init__(self, seat: Seat, name: str, stem: str) -> None:
        self._seat, self._name, self._stem = seat, name, stem
        self._worker: BlockWorker | None = None

    @ray.method(concurrency_group="io")
    def where(self) -> tuple[str, str, int]:
        """Return node id, node address and process id."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid()

    @ray.method(concurrency_group="compute")
    def prepare(self, job: BlockJob, security: Security, host: str) -> Reachable | LowdimfaError:
        """Build the block and start its server. What the process prints goes to the run's logs from here on."""

        def build() -> Reachable:
            with contextlib.suppress(StorageError):  # what was logged before is not worth a block
                own = files_of(self._stem)
                fetch(job.run_dir, own.__contains__, job.parsed().run.liveness_seconds)
            keep_output(log_file(work_dir(job.run_dir), self._stem))
            # Whoever takes this process for stuck can see where it stands, even if nothing in it answers any more.
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
            faulthandler.enable(file=2)
            self._worker = worker_for(job, security, host)
            return self._worker.reachable

        return self._guarded("prepare", build)

    @ray.method(concurrency_group="compute")
    def compute(
        self, method: Callable[Concatenate[BlockWorker, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T | LowdimfaError:
        """Call a method of the worker in the thread that owns the weights."""
        return self._guarded(method.__name__, lambda: method(self._require(), *arguments, **named))

    @ray.method(concurrency_group="io")
    def ask(
        self, method: Callable[Concatenate[BlockWorker, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T | LowdimfaError:
        """Call a method of the worker that any thread may call."""
        return self._guarded(method.__name__, lambda: method(self._require(), *arguments, **named))

    def _guarded(self, method: str, call: Callable[[], T]) -> T | LowdimfaError:
        """Return a typed error instead of raising it: it crosses to the trainer whole, without Ray's wrapping.

        The user's own layers and data run here. What they raise may end an actor (``sys.exit``), and the trainer may be
        unable to rebuild it; so it crosses as text. Where any error came from is printed.
        """
        try:
            return call()
        except LowdimfaError as error:
            traceback.print_exception(error)
            return error.plain()
        except BaseException as error:
            traceback.print_exception(error)
            what = f"{self._name} failed during '{method.replace('_', ' ')}'"
            return unforeseen(error, what, block=self._seat.block, replica=self._seat.rank)

    def _require(self) -> BlockWorker:
        if self._worker is None:
            raise LowdimfaError(f"{self._stem} was asked before it was prepared")
        return self._worker


BlockActor: Any = ray.remote(concurrency_groups={"io": 4, "compute": 1}, max_restarts=0, max_task_retries=0)(
    BlockHost
)
"""The actor class; each of its methods is called with ``.remote``."""
