"""The blocks of a run through all its losses: started, driven, replaced, given up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from lowdimfa.errors import BlockLostError, LowdimfaError, NotFiniteError
from lowdimfa.services.block.building import Checkpointed, Own, Source
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.engine import Recovered, RecoveryPolicy
from lowdimfa.services.trainer.fleet import Fleet
from lowdimfa.services.trainer.gathering import Gathering, gather_blocks
from lowdimfa.services.trainer.postmortem import show_stacks, write_postmortem
from lowdimfa.services.trainer.rescue import Rescue
from lowdimfa.services.trainer.silence import START_LIVENESS
from lowdimfa.services.trainer.snapshots import SnapshotKeeper


class Crew:
    """All blocks of a run, whichever processes they are in at the time.

    Parameters
    ----------
    plan
        The run.
    run_dir
        The same path on every node.
    user_code
        The user's own files.

    Attributes
    ----------
    fleet
        The processes.
    gathering
        How they are reached; None before the first time.

    Raises
    ------
    ResourceError
        The cluster has no room within the liveness setting.
    """

    def __init__(self, plan: RunPlan, run_dir: Path, user_code: UserCode) -> None:
        self._plan, self._run_dir, self._user_code = plan, run_dir, user_code
        self.fleet = Fleet(plan.specification)
        self._workers = len(self.fleet.actors)
        self.gathering: Gathering | None = None
        self._running: tuple[str, Sequence[Any]] = ("", [])
        self._stateless = set(range(self._workers))  # new processes that have no state of the run yet
        self._snapshots: dict[int, Snapshot] = {}
        self._keeper: SnapshotKeeper | None = None

    def start(self, resume_step: int | None) -> Gathering:
        """Build and connect all blocks, and load a checkpoint if a step is given."""
        gathering = self._gather(self._stateless)
        self._load(resume_step or 0, [Checkpointed(resume_step)] * self._workers)
        return gathering

    def drive(self, method: str, arguments: tuple[Any, ...], tick: Callable[[], None]) -> list[Any]:
        """Call every block's compute thread, and wait as long as ``tick`` does not raise."""
        references = self.fleet.compute(method, *arguments)
        self._running = (method, references)
        answers = self.fleet.gather(references, method.replace("_", " "), float("inf"), tick)
        self._running = ("", [])
        return answers

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, checkpoint: int | None) -> Recovered:
        """Replace what was lost, and bring all blocks to a step from which they can go on: see `Engine.recover`."""
        lost = self._stateless | self._named(loss)
        if self.gathering is not None:
            show_stacks(self.gathering, self._named(loss))
        rescue = Rescue(self.fleet, *self._running, lost)
        rescue.bring_to_rest(
            loss, drain=policy == "rejoin"
        )  # in which blocks still wait for snapshots to be kept
        self._stop_keeping()
        self._running = ("", [])
        for index in rescue.lost:
            self.fleet.replace(index)
        step, sources = self._sources(policy, checkpoint, rescue.applied, rescue.lost | self._damaged(loss))
        gathering = self._gather(rescue.lost)
        self._load(step, sources)
        has = [_step_of(source, rescue.applied.get(number, 0)) for number, source in enumerate(sources)]
        seats = self.fleet.seating.seats
        missed = {seats[number].block: step - steps for number, steps in enumerate(has) if steps != step}
        return Recovered(
            step, sorted({seats[number].block for number in rescue.lost}), missed, gathering.pids
        )

    def give_up(self, loss: LowdimfaError) -> LowdimfaError:
        """End all computation, write every block's last words down, and return the error that began it all."""
        self._stop_keeping()
        if self.gathering is not None:
            show_stacks(self.gathering, self._named(loss))
            write_postmortem(self._run_dir, self.fleet, loss)
        return self.fleet.abort(self._running[1], loss)

    def close(self) -> None:
        """End all processes."""
        self._stop_keeping()
        self.fleet.close()

    def _gather(self, new: Collection[int]) -> Gathering:
        self._stateless |= set(new)
        self.gathering = gather_blocks(self.fleet, self._job, new)
        return self.gathering

    def _load(self, step: int, sources: Sequence[Source]) -> None:
        loads = [
            actor.compute.remote("load", step, source)
            for actor, source in zip(self.fleet.actors, sources, strict=True)
        ]
        self.fleet.gather(loads, "load its state", START_LIVENESS * self.fleet.liveness)
        self._stateless = set()
        if self._plan.specification.run.on_failure == "rejoin":
            self._keeper = SnapshotKeeper(self._snapshots, self.fleet.actors)

    def _sources(
        self, policy: RecoveryPolicy, checkpoint: int | None, applied: dict[int, int], stateless: set[int]
    ) -> tuple[int, list[Source]]:
        """Return the step to go on from, and where each block's state comes from."""
        if policy == "restart":
            return checkpoint or 0, [Checkpointed(checkpoint)] * self._workers
        sources = [
            self._newest(index, checkpoint) if index in stateless else Own() for index in range(self._workers)
        ]
        # The others may be behind a lost head's snapshot: errors that it broadcast are lost with it.
        return max(_step_of(source, applied.get(index, 0)) for index, source in enumerate(sources)), sources

    def _newest(self, index: int, checkpoint: int | None) -> Source:
        snapshot = self._snapshots.get(index)
        return Checkpointed(checkpoint) if snapshot is None or snapshot.step < (checkpoint or 0) else snapshot

    def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _named(self, loss: LowdimfaError) -> set[int]:
        """Return the worker that an error says is lost."""
        return self._at_fault(loss) if isinstance(loss, BlockLostError) else set()

    def _damaged(self, loss: LowdimfaError) -> set[int]:
        """Return the worker whose state an error makes doubtful, though its process is well."""
        return self._at_fault(loss) if isinstance(loss, NotFiniteError) else set()

    def _at_fault(self, loss: LowdimfaError) -> set[int]:
        if loss.block is None:
            return set()
        return {self.fleet.seating.number(Seat(loss.block, loss.replica or 0))}

    def _job(self, number: int, run: str) -> BlockJob:
        seat = self.fleet.seating.seats[number]
        return BlockJob.of(self._plan, seat, run, str(self._run_dir), self._user_code)


def _step_of(source: Source, applied: int) -> int:
    """Return the step of a state; ``applied`` is that of the block's own."""
    match source:
        case Own():
            return applied
        case Checkpointed(step):
            return step or 0
    return source.step
