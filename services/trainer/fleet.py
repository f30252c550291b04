"""The actors of a run: placing them, calling them with a deadline, finding who failed first, ending them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lowdimfa.errors import BlockLostError, LowdimfaError, PeerError, ResourceError
from services.block.actor import BlockActor
from services.spec import Specification
from services.trainer.end_of_process import kernel_oom_kills, reason_of

POLL_SECONDS = 0.2
"""Pause between looks at what the blocks have done."""

CLOSE_SECONDS = 5.0
"""Longest time that a block gets to close its connections before it is ended."""


class Fleet:
    """The block actors of one run in one placement group.

    Parameters
    ----------
    specification
        For placement and liveness.
    blocks
        How many.

    Raises
    ------
    ResourceError
        The cluster has no room within the liveness setting.
    """

    def __init__(self, specification: Specification, blocks: int) -> None:
        placement = specification.placement
        self.liveness = specification.run.liveness_seconds
        resources = {"CPU": float(placement.cpus_per_block)}
        if placement.gpus_per_block:
            resources["GPU"] = float(placement.gpus_per_block)
        context = ray.get_runtime_context()
        trainer = context.get_actor_name() or context.get_actor_id() or "driver"
        free_places(trainer)  # those of an earlier part of the run whose trainer was killed
        self._group = placement_group(
            [resources] * blocks, strategy=placement.strategy, name=_group_name(trainer)
        )
        self._options = {"num_cpus": placement.cpus_per_block, "num_gpus": placement.gpus_per_block}
        self._trainer = trainer
        self._oom_kills = kernel_oom_kills()
        self.actors: list[Any] = []
        try:
            self._await_room(resources, blocks, placement.strategy)
        except ResourceError:
            self.close()
            raise
        self.actors = [self._place(index) for index in range(blocks)]

    def _place(self, index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        name = f"block-{index}-{self._trainer}-{time.time_ns()}"
        return BlockActor.options(scheduling_strategy=strategy, name=name, **self._options).remote(index)

    def without_room(self, loss: BlockLostError) -> BlockLostError | None:
        """Return the error for a block that doesn't start because no node has a place for it, if that is why."""
        if placement_group_table(self._group)["state"] in ("CREATED", "REMOVED"):
            return None
        return BlockLostError(
            f"no node of the cluster has room for a lost block any more ({loss.message}); bring a node back or add one",
            block=loss.block,
            setting="placement",
        )

    def replace(self, index: int) -> None:
        """End a block's process, if there still is one, and start another, where Ray has its place now."""
        ray.kill(self.actors[index])
        self.actors[index] = self._place(index)

    def _await_room(self, resources: dict[str, float], blocks: int, strategy: str) -> None:
        try:
            ray.get(self._group.ready(), timeout=self.liveness)
        except GetTimeoutError:
            have = ", ".join(f"{amount:g} {name}" for name, amount in sorted(_resources().items()))
            need = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
            raise ResourceError(
                f"the cluster had no room for {blocks} blocks of {need} each ({strategy}) within "
                f"{self.liveness:g} s; free now: {have or 'nothing'}. Add nodes, use fewer blocks, or lower "
                "placement.cpus_per_block",
                setting="placement",
            ) from None

    def gather(
        self, references: Sequence[Any], what: str, seconds: float, tick: Callable[[], None] | None = None
    ) -> list[Any]:
        """Wait for one answer of each block.

        Parameters
        ----------
        references
            One call per block, in order.
        what
            What the blocks were asked for, for the message.
        seconds
            Longest wait; infinite where ``tick`` judges.
        tick
            Called now and then during the wait; it may raise.

        Raises
        ------
        LowdimfaError
            The first error that a block returned, a lost actor, or the blocks that stayed silent.
        """
        deadline = time.monotonic() + seconds
        pending = list(references)
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
            for reference in done:
                self._answer(reference, references.index(reference), what)
            if tick is not None:
                tick()
            if pending and time.monotonic() > deadline:
                raise _silent(sorted(references.index(reference) for reference in pending), what, seconds)
        return [self._answer(reference, index, what) for index, reference in enumerate(references)]

    def _answer(self, reference: Any, index: int, what: str) -> Any:
        try:
            value = ray.get(reference, timeout=self.liveness)
        except RayTaskError as error:
            raise LowdimfaError(
                f"block {index} failed during '{what}' ({type(error.cause).__name__}: {error.cause})",
                block=index,
            ) from error
        except (
            RayError
        ) as error:  # of many kinds: an actor that died, a node, a process killed for its memory
            raise BlockLostError(
                f"block {index} lost its process during '{what}' ({reason_of(error, self._oom_kills)})",
                block=index,
            ) from error
        if isinstance(value, LowdimfaError):
            raise value
        return value

    def compute(self, method: str, *arguments: Any) -> list[Any]:
        """Call a worker's method in every block's compute thread; return the references."""
        return [actor.compute.remote(method, *arguments) for actor in self.actors]

    def ask_one(self, index: int, method: str, *arguments: Any) -> Any:
        """Call a worker's method beside one block's computation; return its answer.

        Raises
        ------
        LowdimfaError
            The error that the block returned, a lost actor, or no answer within the liveness.
        """
        reference = self.actors[index].ask.remote(method, *arguments)
        answered, _ = ray.wait([reference], timeout=self.liveness)
        if not answered:
            raise _silent([index], method.replace("_", " "), self.liveness)
        return self._answer(reference, index, method.replace("_", " "))

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a worker's method beside every block's computation; return the references."""
        return [actor.ask.remote(method, *arguments) for actor in self.actors]

    def roll_call(self, method: str, seconds: float, missing: Collection[int] = ()) -> dict[int, Any]:
        """Call a worker's method beside every block's computation; return the answers of those that give one.

        Parameters
        ----------
        method
            Of the worker.
        seconds
            Longest wait for all of them.
        missing
            Blocks that need not be asked.
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

    def outcomes(self, references: Sequence[Any], seconds: float) -> dict[int, LowdimfaError | None]:
        """Wait for calls that every block was sent to end, and say how each did: with an error, or well.

        A block that has not ended after ``seconds`` is missing; one that lost its process has a `BlockLostError`.
        """
        if not references:
            return {}
        ray.wait(list(references), num_returns=len(references), timeout=seconds)
        ended: dict[int, LowdimfaError | None] = {}
        for index, reference in enumerate(references):
            if ray.wait([reference], timeout=0)[0]:
                try:
                    self._answer(reference, index, "abort")
                    ended[index] = None
                except LowdimfaError as error:
                    ended[index] = error
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

    def close(self) -> None:
        """End all actors and free their places."""
        with contextlib.suppress(Exception):  # a dead or hanging actor can't be closed, only ended
            ray.wait(self.ask("close"), num_returns=len(self.actors), timeout=CLOSE_SECONDS)
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        remove_placement_group(self._group)


def free_places(trainer: str) -> None:
    """Give back the places of a trainer that was killed; harmless if it holds none.

    Its blocks end with it, but Ray keeps their placement group for as long as the driver lives that made the trainer.

    Parameters
    ----------
    trainer
        Name of its actor, or the actor's identifier if it has no name.
    """
    with contextlib.suppress(ValueError):  # there is none of that name
        remove_placement_group(ray.util.get_placement_group(_group_name(trainer)))


def _group_name(trainer: str) -> str:
    return f"blocks of {trainer}"


def _silent(blocks: Sequence[int], what: str, seconds: float) -> BlockLostError:
    return BlockLostError(
        f"no answer to '{what}' from block {', '.join(map(str, blocks))} within {seconds:g} s; raise "
        "run.liveness_seconds if it needs longer",
        block=blocks[0],
        setting="run.liveness_seconds",
    )


def _resources() -> dict[str, float]:
    free = ray.available_resources()
    return {name: float(free[name]) for name in ("CPU", "GPU") if name in free}
