"""After a loss: the blocks that are left come to rest, lost ones are replaced, and all go on from one step."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import ray
from ray.exceptions import RayActorError

from lowdimfa.errors import BlockLostError, LowdimfaError, NotFiniteError, PeerError
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.recovery.policy import RecoveryPolicy
from lowdimfa.services.recovery.sources import way_back
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.trainer.engine import Recovered, Saved
from lowdimfa.services.trainer.postmortem import show_stacks
from lowdimfa.services.trainer.worker_calls import Call, Worker, answers, outcomes
from lowdimfa.services.trainer.worker_group import WorkerGroup

_AGAIN_SECONDS = 0.5
"""Before a block is asked again for a snapshot that didn't arrive."""
WAIT_SECONDS = 2.0
"""Longest time that a block is asked to wait for its next snapshot; then it is asked again."""


class Rescue:
    """Brings a group of workers back after losses, and keeps the snapshots that it takes for that.

    Parameters
    ----------
    group
        The workers.
    snapshots
        Whether they make any.
    """

    def __init__(self, group: WorkerGroup, snapshots: bool) -> None:
        self._group = group
        self._makes_snapshots = snapshots
        self._snapshots: dict[int, Snapshot] = {}
        self._keeper: _SnapshotKeeper | None = None

    def keep_snapshots(self) -> None:
        """Begin to keep the workers' snapshots, if they make any."""
        if self._makes_snapshots:
            self._keeper = _SnapshotKeeper(self._snapshots, self._group.workers)

    def close(self) -> None:
        """Keep no further snapshots."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        """Replace what was lost, and bring all workers to a step from which they can go on: see `Engine.recover`."""
        group = self._group
        lost = group.stateless | self.named(loss)
        self.show_stacks(loss)
        rest = _Rest(group, lost)
        rest.bring_about(loss, drain=policy == "rejoin")  # in which some still wait for snapshots to be kept
        self.close()
        group.running = None
        for number in rest.lost:
            group.replace(number)
        group.doubtful |= _at_fault(group, loss, NotFiniteError)
        gone = rest.lost | group.doubtful
        seats = group.topology.seats
        # The head among them, though it may be frozen: the steps that it has come to are the run's.
        learning = [
            group.topology.number(seat) for seat in (*group.topology.subscribers, group.topology.head)
        ]
        checkpoint = saved.newest_good() if policy == "restart" or self._goes_back(gone, saved) else None
        way = way_back(policy, rest.applied, gone, len(seats), checkpoint, self._snapshots, learning)
        connected = group.connect()
        group.load(way.step, way.sources)
        self.keep_snapshots()
        missed = {seats[number].block: steps for number, steps in way.missed.items()}
        return Recovered(
            way.step, sorted({seats[number].block for number in rest.lost}), missed, connected.pids
        )

    def _goes_back(self, gone: set[int], saved: Saved) -> bool:
        """Whether a worker has no snapshot that is as new as the last checkpoint, which else nobody needs to read."""
        least = saved.step or 0
        return any(number not in self._snapshots or self._snapshots[number].step < least for number in gone)

    def named(self, loss: LowdimfaError) -> set[int]:
        """Return the number of the worker that an error says is lost."""
        return _at_fault(self._group, loss, BlockLostError)

    def show_stacks(self, loss: LowdimfaError) -> None:
        """Have the worker that an error says is lost print where it stands."""
        if self._group.connected is not None:
            show_stacks(self._group.connected, self.named(loss))


def _at_fault(group: WorkerGroup, loss: LowdimfaError, kind: type[LowdimfaError]) -> set[int]:
    if not isinstance(loss, kind) or loss.block is None:
        return set()
    return {group.topology.number(Seat(loss.block, loss.replica or 0))}


class _Rest:
    """Finds the workers that are left, and lets them come to rest after the same step.

    Parameters
    ----------
    group
        All workers.
    lost
        Numbers of those that are known to be lost.

    Attributes
    ----------
    lost
        Numbers of workers whose processes are of no more use; it grows while others turn out to be lost too.
    applied
        Optimiser steps that each worker that is left has applied, by number.
    """

    def __init__(self, group: WorkerGroup, lost: set[int]) -> None:
        self._group = group
        self.lost = lost
        self.applied: dict[int, int] = {}
        self._call_roll()

    def bring_about(self, loss: LowdimfaError, drain: bool) -> None:
        """Let all workers that are left end what they do.

        Parameters
        ----------
        loss
            Why.
        drain
            Whether they first make the updates whose errors the head has broadcast. Blocks that run steps then come to
            rest after the same step, if the head is left.
        """
        running = self._group.running
        if running is not None:
            if drain and running.method is BlockWorker.run_steps:
                self._halt_at_head(running.calls)
            else:
                left = self._left(self._group.workers)
                error = PeerError(f"all blocks come to rest: {loss.message}")
                self._hear([worker.ask(BlockWorker.abort, error) for worker in left])
                self._await(running.calls)
        self._call_roll()

    def _call_roll(self) -> None:
        """Note who is left, and how far it is."""
        asked = [worker.ask(BlockWorker.status) for worker in self._left(self._group.workers)]
        found = answers(asked, self._group.liveness / 2)
        self.applied = {number: status.applied_steps for number, status in found.items()}
        self.lost |= {worker.number for worker in self._group.workers} - found.keys()

    def _halt_at_head(self, calls: Sequence[Call[object]]) -> None:
        """Halt the head, then the others after the last error that it has broadcast."""
        head, through = self._group.head, None
        if head.number not in self.lost:
            self._hear([head.ask(BlockWorker.halt, None)])
            self._await(calls[-1:])
        if head.number not in self.lost:
            through = self._group.ask_one(head, BlockWorker.published)
        self._hear([worker.ask(BlockWorker.halt, through) for worker in self._left(self._group.workers[:-1])])
        self._await(calls[:-1])

    def _left(self, workers: Sequence[Worker]) -> list[Worker]:
        return [worker for worker in workers if worker.number not in self.lost]

    def _hear(self, told: Sequence[Call[None]]) -> None:
        """Wait until workers have heard, as it must not reach them when they have gone on."""
        if told:  # one that doesn't hear is found lost next
            ray.wait([call.reference for call in told], num_returns=len(told), timeout=self._group.liveness)

    def _await(self, calls: Sequence[Call[object]]) -> None:
        """Wait until workers have ended what they were called for; those that don't are lost."""
        awaited = [call for call in calls if call.worker.number not in self.lost]
        ended = outcomes(awaited, self._group.liveness)
        for call in awaited:
            number = call.worker.number
            if number not in ended or isinstance(ended[number], BlockLostError):
                self.lost.add(number)


class _SnapshotKeeper:
    """A thread that fetches every block's snapshots as they come, and keeps the newest of each.

    A snapshot is the return value of a call, so it lives on when the block's process ends; once it is here, it is on the
    trainer's node too. Asking for the next one tells a block that the last one is kept.

    Parameters
    ----------
    kept
        By the workers' numbers, from an earlier keeper; shared, not copied.
    workers
        All of them.
    """

    def __init__(self, kept: dict[int, Snapshot], workers: Sequence[Worker]) -> None:
        self._kept = kept
        self._workers = list(workers)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop fetching."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        asked = {call.reference: call for call in map(self._ask, self._workers)}
        while asked and not self._closed.is_set():
            ready, _ = ray.wait(list(asked), timeout=0.1)
            for reference in ready:
                call = asked.pop(reference)
                try:
                    snapshot = call.answer("next snapshot")
                except Exception as error:
                    if isinstance(
                        error.__cause__, RayActorError
                    ):  # lost: whoever waits for its steps says so
                        continue
                    snapshot = None  # it took too long on its way, say; the block waits to be asked again
                    self._closed.wait(_AGAIN_SECONDS)
                if snapshot is not None:
                    self._kept[call.worker.number] = snapshot
                following = self._ask(call.worker)
                asked[following.reference] = following

    def _ask(self, worker: Worker) -> Call[Snapshot | None]:
        kept = self._kept.get(worker.number)
        return worker.ask(BlockWorker.next_snapshot, -1 if kept is None else kept.step, WAIT_SECONDS)
