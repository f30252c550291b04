"""The actors of a run: placing them, calling them with a deadline, finding who failed first, ending them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from lowdimfa.errors import BlockLostError, LowdimfaError, PeerError
from lowdimfa.services.block.building import make_topology
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.end_of_process import kernel_oom_kills, reason_of
from lowdimfa.services.trainer.places import Places

POLL_SECONDS = 0.2
"""Pause between looks at what the blocks have done."""

CLOSE_SECONDS = 5.0
"""Longest time that a block gets to close its connections before it is ended."""


class Fleet:
    """The block actors of one run in one placement group: block by block, and replica by replica within each.

    Workers are known by their numbers in this order, which are the blocks' indexes where each block has one replica.

    Parameters
    ----------
    specification
        For placement and liveness.

    Attributes
    ----------
    seating
        Which worker is which replica of which block.
    actors
        Of the workers.

    Raises
    ------
    ResourceError
        The cluster has no room within the liveness setting.
    """

    def __init__(self, specification: Specification) -> None:
        self.seating = make_topology(specification)
        self.liveness = specification.run.liveness_seconds
        self._oom_kills = kernel_oom_kills()
        self._places = Places(specification, self.seating)
        self.actors = [self._places.start(number) for number in range(len(self.seating.seats))]

    @property
    def head(self) -> int:
        """Number of the head's worker."""
        return len(self.seating.seats) - 1

    def name(self, number: int) -> str:
        """Return a worker's name, such as ``block 1`` or ``block 1, replica 0``."""
        return self.seating.name(self.seating.seats[number])

    def lost(self, number: int, message: str, **fields: Any) -> BlockLostError:
        """Return the error for a worker that is lost."""
        seat = self.seating.seats[number]
        return BlockLostError(message, block=seat.block, replica=seat.rank, **fields)

    def without_room(self, loss: BlockLostError) -> BlockLostError | None:
        """Return the error for a block that doesn't start because no node has a place for it, if that is why."""
        return self._places.lacking(loss)

    def replace(self, number: int) -> None:
        """End a worker's process, if there still is one, and start another, where Ray has its place now."""
        ray.kill(self.actors[number])
        self.actors[number] = self._places.start(number)

    def gather(
        self,
        references: Sequence[Any],
        what: str,
        seconds: float,
        tick: Callable[[], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Any]:
        """Wait for one answer of each worker.

        Parameters
        ----------
        references
            One call per worker, in order; or of some, with ``numbers``.
        what
            What the blocks were asked for, for the message.
        seconds
            Longest wait; infinite where ``tick`` judges.
        tick
            Called now and then during the wait; it may raise.
        numbers
            Whose calls they are, if not all workers'.

        Raises
        ------
        LowdimfaError
            The first error that a block returned, a lost actor, or the blocks that stayed silent.
        """
        deadline = time.monotonic() + seconds
        numbers = range(len(references)) if numbers is None else numbers
        number_of = dict(zip(references, numbers, strict=True))
        pending = list(references)
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
            for reference in done:
                self._answer(reference, number_of[reference], what)
            if tick is not None:
                tick()
            if pending and time.monotonic() > deadline:
                raise self._silent(sorted(number_of[reference] for reference in pending), what, seconds)
        return [self._answer(reference, number, what) for reference, number in number_of.items()]

    def _answer(self, reference: Any, number: int, what: str) -> Any:
        seat, name = self.seating.seats[number], self.name(number)
        try:
            value = ray.get(reference, timeout=self.liveness)
        except RayTaskError as error:
            raise LowdimfaError(
                f"{name} failed during '{what}' ({type(error.cause).__name__}: {error.cause})",
                block=seat.block,
                replica=seat.rank,
            ) from error
        except (
            RayError
        ) as error:  # of many kinds: an actor that died, a node, a process killed for its memory
            why = reason_of(error, self._oom_kills)
            raise self.lost(number, f"{name} lost its process during '{what}' ({why})") from error
        if isinstance(value, LowdimfaError):
            raise value
        return value

    def compute(self, method: str, *arguments: Any) -> list[Any]:
        """Call a worker's method in every compute thread; return the references."""
        return [actor.compute.remote(method, *arguments) for actor in self.actors]

    def compute_by_block(
        self, method: str, *arguments: Any, what: str = "", seconds: float = float("inf")
    ) -> list[Any]:
        """Call a worker's method in the compute thread of each block's first replica; return one answer per block."""
        numbers = self.seating.leaders
        references = [self.actors[number].compute.remote(method, *arguments) for number in numbers]
        return self.gather(references, what or method, seconds, numbers=numbers)

    def ask_one(self, number: int, method: str, *arguments: Any) -> Any:
        """Call a worker's method beside its computation; return its answer.

        Raises
        ------
        LowdimfaError
            The error that the block returned, a lost actor, or no answer within the liveness.
        """
        reference = self.actors[number].ask.remote(method, *arguments)
        answered, _ = ray.wait([reference], timeout=self.liveness)
        if not answered:
            raise self._silent([number], method.replace("_", " "), self.liveness)
        return self._answer(reference, number, method.replace("_", " "))

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a worker's method beside every worker's computation; return the references."""
        return [actor.ask.remote(method, *arguments) for actor in self.actors]

    def roll_call(self, method: str, seconds: float, missing: Collection[int] = ()) -> dict[int, Any]:
        """Call a worker's method beside every worker's computation; return those that answer, by number.

        Parameters
        ----------
        method
            Of the worker.
        seconds
            Longest wait for all of them.
        missing
            Workers that need not be asked.
        """
        asked = {i: actor.ask.remote(method) for i, actor in enumerate(self.actors) if i not in missing}
        if not asked:
            return {}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
        answers: dict[int, Any] = {}
        for index, reference in asked.items():
            if reference in ready:
                with contextlib.suppress(LowdimfaError):
                    answers[index] = self._answer(reference, index, method)
        return answers

    def outcomes(
        self, references: Sequence[Any], seconds: float, numbers: Sequence[int] | None = None
    ) -> dict[int, LowdimfaError | None]:
        """Wait for workers' calls to end, and say by number how each did: with an error, or well.

        A worker that has not ended after ``seconds`` is missing; one that lost its process has a `BlockLostError`.
        ``numbers`` says whose calls they are, if not all workers'.
        """
        if not references:
            return {}
        ray.wait(list(references), num_returns=len(references), timeout=seconds)
        ended: dict[int, LowdimfaError | None] = {}
        for number, reference in zip(numbers or range(len(references)), references, strict=True):
            if ray.wait([reference], timeout=0)[0]:
                try:
                    self._answer(reference, number, "abort")
                    ended[number] = None
                except LowdimfaError as error:
                    ended[number] = error
        return ended

    def abort(self, references: Sequence[Any], cause: LowdimfaError) -> LowdimfaError:
        """Stop every block's computation and return the error that began it all.

        One block's failure soon shows in the others as lost peers, so those count only if nothing else was reported.
        """
        self.ask("abort", PeerError(f"the run was stopped: {cause.message}"))
        outcomes = self.outcomes(references, self.liveness / 4).values()
        found = [cause, *(error for error in outcomes if error is not None)]
        lost = (error for error in found if isinstance(error, BlockLostError))
        return next((error for error in found if not isinstance(error, PeerError)), next(lost, cause))

    def _silent(self, numbers: Sequence[int], what: str, seconds: float) -> BlockLostError:
        names = "; ".join(map(self.name, numbers))
        return self.lost(
            numbers[0],
            f"no answer to '{what}' from {names} within {seconds:g} s; raise run.liveness_seconds if it needs longer",
            setting="run.liveness_seconds",
        )

    def close(self) -> None:
        """End all actors and free their places."""
        with contextlib.suppress(Exception):  # a dead or hanging actor can't be closed, only ended
            ray.wait(self.ask("close"), num_returns=len(self.actors), timeout=CLOSE_SECONDS)
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        self._places.free()
