"""Calls of workers' actors: typed, with a deadline, and with the name of who failed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from lowdimfa.errors import BlockLostError, LowdimfaError
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.reports import Reachable
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.trainer.end_of_process import kernel_oom_kills, reason_of

POLL_SECONDS = 0.2
"""Pause between looks at what the workers have done."""

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[BlockWorker, P], T]
"""What a worker can be called for, such as ``BlockWorker.run_steps``."""


@dataclass(frozen=True)
class Worker:
    """The handle of one worker's actor.

    Attributes
    ----------
    number
        Its place among the workers of the run: block by block, and replica by replica within each.
    seat
        Which replica of which block it is.
    name
        Such as ``block 1`` or ``block 1, replica 0``.
    actor
        Of Ray.
    liveness
        Seconds within which an answer that is there must arrive.
    """

    number: int
    seat: Seat
    name: str
    actor: Any
    liveness: float
    _kills: int = field(default_factory=kernel_oom_kills)

    def compute(self, method: Method[P, T], *arguments: P.args, **named: P.kwargs) -> Call[T]:
        """Call a method of the worker in the thread that owns the weights."""
        return Call(self, self.actor.compute.remote(method, *arguments, **named))

    def ask(self, method: Method[P, T], *arguments: P.args, **named: P.kwargs) -> Call[T]:
        """Call a method of the worker beside its computation."""
        return Call(self, self.actor.ask.remote(method, *arguments, **named))

    def where(self) -> Call[tuple[str, str, int]]:
        """Ask for node id, node address and process id."""
        return Call(self, self.actor.where.remote())

    def prepare(self, job: BlockJob, security: Security, host: str) -> Call[Reachable]:
        """Let the worker be built and start its server."""
        return Call(self, self.actor.prepare.remote(job, security, host))

    def lost(self, message: str, step: int | None = None, setting: str | None = None) -> BlockLostError:
        """Return the error for this worker's loss."""
        return BlockLostError(
            message, block=self.seat.block, replica=self.seat.rank, step=step, setting=setting
        )

    def answer(self, reference: Any, what: str) -> Any:
        """Return what a call came to, once it is there.

        Raises
        ------
        LowdimfaError
            The error that the worker returned, or its loss.
        """
        try:
            value = ray.get(reference, timeout=self.liveness)
        except RayTaskError as error:
            raise LowdimfaError(
                f"{self.name} failed during '{what}' ({type(error.cause).__name__}: {error.cause})",
                block=self.seat.block,
                replica=self.seat.rank,
            ) from error
        except (
            RayError
        ) as error:  # of many kinds: an actor that died, a node, a process killed for its memory
            why = reason_of(error, self._kills)
            raise self.lost(f"{self.name} lost its process during '{what}' ({why})") from error
        if isinstance(value, LowdimfaError):
            raise value
        return value


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call that is under way: whose, and Ray's reference to its answer."""

    worker: Worker
    reference: Any

    def answer(self, what: str) -> T:
        """Return the answer, once it is there: see `Worker.answer`."""
        value: T = self.worker.answer(self.reference, what)
        return value


def spoken(method: Callable[..., object]) -> str:
    """Return what a method is called in messages."""
    return method.__name__.replace("_", " ")


def gather(
    calls: Sequence[Call[T]], what: str, seconds: float, tick: Callable[[], None] | None = None
) -> list[T]:
    """Wait for the answers of several workers.

    Parameters
    ----------
    calls
        What is under way.
    what
        What the workers were asked for, for the message.
    seconds
        Longest wait; infinite where ``tick`` judges.
    tick
        Called now and then during the wait; it may raise.

    Raises
    ------
    LowdimfaError
        The first error that a worker returned, a lost actor, or the workers that stayed silent.
    """
    deadline = time.monotonic() + seconds
    call_of = {call.reference: call for call in calls}
    pending = list(call_of)
    while pending:
        done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
        for reference in done:
            call_of[reference].answer(what)
        if tick is not None:
            tick()
        if pending and time.monotonic() > deadline:
            raise silent((call_of[reference].worker for reference in pending), what, seconds)
    return [call.answer(what) for call in calls]


def answers(calls: Sequence[Call[T]], seconds: float) -> dict[int, T]:
    """Return the good answers that come within ``seconds``, by the workers' numbers."""
    found: dict[int, T] = {}
    for call in _ended(calls, seconds):
        with contextlib.suppress(LowdimfaError):
            found[call.worker.number] = call.answer("answer")
    return found


def outcomes(calls: Sequence[Call[T]], seconds: float) -> dict[int, LowdimfaError | None]:
    """Wait for calls to end, and say by the workers' numbers how each did: with an error, or well.

    One that has not ended after ``seconds`` is missing; that of a worker that lost its process has a `BlockLostError`.
    """
    ended: dict[int, LowdimfaError | None] = {}
    for call in _ended(calls, seconds):
        try:
            call.answer("abort")
            ended[call.worker.number] = None
        except LowdimfaError as error:
            ended[call.worker.number] = error
    return ended


def silent(workers: Iterable[Worker], what: str, seconds: float) -> BlockLostError:
    """Return the error for workers that gave no answer."""
    quiet = sorted(workers, key=lambda worker: worker.number)
    names = "; ".join(worker.name for worker in quiet)
    return quiet[0].lost(
        f"no answer to '{what}' from {names} within {seconds:g} s; raise run.liveness_seconds if it needs longer",
        setting="run.liveness_seconds",
    )


def _ended(calls: Sequence[Call[T]], seconds: float) -> list[Call[T]]:
    if not calls:
        return []
    references = [call.reference for call in calls]
    done, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
    ready = set(done)
    return [call for call in calls if call.reference in ready]
