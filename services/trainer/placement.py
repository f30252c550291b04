"""Room in the cluster for the workers of a run: one placement group, whose places outlive the processes in them.

A trainer that is itself in a placement group, such as that of a trial of Ray Tune, has its workers in the last places of
it: what is counted for the trial is then what it takes.
"""

from __future__ import annotations

import contextlib
import time

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lowdimfa.errors import BlockLostError, BlockWithoutRoomError, NoRoomError
from lowdimfa.services.block.actor import BlockActor
from lowdimfa.services.rpc.topology import Topology
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.worker_calls import Worker


class Placement:
    """A place for each worker of a run.

    Parameters
    ----------
    specification
        For placement and liveness.
    topology
        Who needs one.

    Raises
    ------
    NoRoomError
        The cluster has no room within the liveness setting, or the placement group that the trainer is in has none.
    """

    def __init__(self, specification: Specification, topology: Topology) -> None:
        placement = specification.placement
        self._topology, self._liveness = topology, specification.run.liveness_seconds
        resources = {"CPU": float(placement.cpus_per_block)}
        if placement.gpus_per_block:
            resources["GPU"] = float(placement.gpus_per_block)
        context, workers = ray.get_runtime_context(), len(topology.seats)
        self._trainer = context.get_actor_name() or context.get_actor_id() or "driver"
        self._options = {"num_cpus": placement.cpus_per_block, "num_gpus": placement.gpus_per_block}
        self._around = ray.util.get_current_placement_group()
        if self._around is not None:
            self._group, self._first = self._around, self._around.bundle_count - workers
            _require_places(self._around.bundle_specs[1:], [resources] * workers)
            return
        free_places(self._trainer)  # those of an earlier part of the run whose trainer was killed
        self._group, self._first = (
            placement_group(
                [resources] * workers, strategy=placement.strategy, name=_group_name(self._trainer)
            ),
            0,
        )
        try:
            self._await_room(resources, placement.strategy)
        except NoRoomError:
            self.free()
            raise

    def start(self, number: int) -> Worker:
        """Start a worker's actor, where Ray has its place now."""
        bundle = self._first + number
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        seat = self._topology.seats[number]
        name, stem = self._topology.name(seat), self._topology.file_stem(seat)
        options = {"name": f"{stem}-{self._trainer}-{time.time_ns()}", **self._options}
        actor = BlockActor.options(scheduling_strategy=strategy, **options).remote(seat, name, stem)
        return Worker(number, seat, name, actor, self._liveness)

    def lacking(self, loss: BlockLostError) -> BlockLostError | None:
        """Return the error for a block that doesn't start because no node has a place for it, if that is why."""
        if placement_group_table(self._group)["state"] in ("CREATED", "REMOVED"):
            return None
        return BlockWithoutRoomError(
            f"no node of the cluster has room for a lost block any more ({loss.message}); bring a node back or add one",
            block=loss.block,
            replica=loss.replica,
            setting="placement",
        )

    def free(self) -> None:
        """Give all places back, unless they are those of whom the trainer belongs to."""
        if self._around is None:
            remove_placement_group(self._group)

    def _await_room(self, resources: dict[str, float], strategy: str) -> None:
        try:
            ray.get(self._group.ready(), timeout=self._liveness)
        except GetTimeoutError:
            have = ", ".join(f"{amount:g} {name}" for name, amount in sorted(_free_resources().items()))
            need = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
            seconds = f"{self._liveness:g} s"
            blocks, workers = len(self._topology.replicas), len(self._topology.seats)
            wanted = f"{blocks} blocks" if workers == blocks else f"{workers} replicas of {blocks} blocks"
            fewer = "blocks" if workers == blocks else "blocks or replicas"
            raise NoRoomError(
                f"the cluster had no room for {wanted} of {need} each ({strategy}) within {seconds}; free now: "
                f"{have or 'nothing'}. Add nodes, use fewer {fewer}, or lower placement.cpus_per_block",
                setting="placement",
            ) from None


def _require_places(places: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    """Refuse a placement group without places for the workers at its end, after at least one for who runs the trainer."""
    pairs = zip(reversed(places), wanted, strict=False)
    if len(places) < len(wanted) or any(
        place.get(name, 0.0) < amount for place, need in pairs for name, amount in need.items()
    ):
        raise NoRoomError(
            f"the placement group that this trial is in has {1 + len(places)} bundles, {len(places)} of them beside its "
            f"own; it needs {len(wanted)} of {wanted[0]}: tune.with_resources(trial, "
            f"tune.PlacementGroupFactory([{{'CPU': 1}}] + [{wanted[0]}] * {len(wanted)}))",
            setting="placement",
        )


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


def _free_resources() -> dict[str, float]:
    free = ray.available_resources()
    return {name: float(free[name]) for name in ("CPU", "GPU") if name in free}
