"""The workers of a run as one group: placed, connected, given their state, called together, ended."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from lowdimfa.errors import BlockLostError, LowdimfaError, PeerError
from lowdimfa.services.block.building import Checkpointed, Source, make_topology
from lowdimfa.services.block.job import BlockJob
from lowdimfa.services.block.reports import Reachable
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.recovery.deadlines import START_LIVENESS
from lowdimfa.services.rpc.security import Security
from lowdimfa.services.run.plan import RunPlan
from lowdimfa.services.run.storage import Place
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer.placement import Placement
from lowdimfa.services.trainer.worker_calls import (
    Call,
    Method,
    P,
    T,
    Worker,
    gather,
    outcomes,
    silent,
    spoken,
)

CLOSE_SECONDS = 5.0
"""Longest time that a worker gets to close its connections before it is ended."""


@dataclass(frozen=True)
class Connected:
    """Workers that are connected with each other.

    Attributes
    ----------
    reachable
        Where each worker is reached.
    nodes
        Identifiers of the nodes, by worker.
    pids
        Of their processes, by worker.
    """

    reachable: list[Reachable]
    nodes: list[str]
    pids: list[int]


@dataclass(frozen=True)
class Running:
    """What all workers were called for: the method, and the calls by number."""

    method: Callable[..., object]
    calls: Sequence[Call[Any]]


class WorkerGroup:
    """The workers of one run, whichever processes they are in at the time.

    Workers are known by their numbers, which are the blocks' indexes where each block has one replica.

    Parameters
    ----------
    plan
        The run.
    place
        Of the run: the same path on every node, or an address.
    user_code
        The user's own files.

    Attributes
    ----------
    topology
        Which worker is which replica of which block.
    workers
        Their handles, by number.
    connected
        How they are reached; None before the first time.
    stateless
        Numbers of workers in new processes that have no state of the run yet.
    doubtful
        Numbers of those whose state is doubtful, though their processes are well, until they are given another.
    running
        What all workers were called for last, if that has not ended well.

    Raises
    ------
    NoRoomError
        The cluster has no room within the liveness setting.
    """

    def __init__(self, plan: RunPlan, place: Place, user_code: UserCode) -> None:
        self._plan, self._place, self._user_code = plan, place, user_code
        specification = plan.specification
        self.topology = make_topology(specification, plan.network)
        self.liveness = specification.run.liveness_seconds
        self._placement = Placement(specification, self.topology)
        self.workers = [self._placement.start(number) for number in range(len(self.topology.seats))]
        self.connected: Connected | None = None
        self.stateless = set(range(len(self.workers)))
        self.doubtful: set[int] = set()
        self.running: Running | None = None

    @property
    def head(self) -> Worker:
        """The worker that has the head."""
        return self.workers[-1]

    def start(self, resume_step: int | None) -> Connected:
        """Build and connect all workers, and load a checkpoint if a step is given."""
        connected = self.connect()
        self.load(resume_step or 0, [Checkpointed(resume_step)] * len(self.workers))
        return connected

    def replace(self, number: int) -> None:
        """End a worker's process, if there still is one, and start another, where Ray has its place now."""
        ray.kill(self.workers[number].actor)
        self.workers[number] = self._placement.start(number)
        self.stateless.add(number)

    def connect(self) -> Connected:
        """Connect all workers under an identifier of the run that no earlier message has.

        Those without a state are built; the others open new connections in place of those they have.

        Raises
        ------
        LowdimfaError
            A worker was lost, is silent, or can't connect.
        """
        patience = START_LIVENESS * self.liveness
        try:
            places = gather([worker.where() for worker in self.workers], "start", patience)
        except BlockLostError as error:
            raise self._placement.lacking(error) or error from None
        one_node = len({node for node, _, _ in places}) == 1
        security = Security.loopback() if one_node else Security.mutual_tls()
        hosts = ["127.0.0.1" if one_node else address for _, address, _ in places]
        run = secrets.token_hex(8)
        opened = [
            worker.prepare(self._job(worker, run, node), security, host)
            if worker.number in self.stateless
            else worker.compute(BlockWorker.reopen, run, security, host)
            for worker, host, (_, node, _) in zip(self.workers, hosts, places, strict=True)
        ]
        reachable = gather(opened, "prepare", patience)
        peers = [block.rpc for block in reachable]
        gather(self.compute(BlockWorker.connect, peers), "connect", patience)
        gather(self.compute(BlockWorker.wait_until_connected), "connect", patience)
        self.connected = Connected(reachable, [node for node, _, _ in places], [pid for _, _, pid in places])
        return self.connected

    def load(self, step: int, sources: Sequence[Source]) -> None:
        """Give every worker its state as that after a step."""
        loads = [
            worker.compute(BlockWorker.load, step, source)
            for worker, source in zip(self.workers, sources, strict=True)
        ]
        gather(loads, "load its state", START_LIVENESS * self.liveness)
        self.stateless, self.doubtful = set(), set()

    def drive(
        self, tick: Callable[[], None], method: Method[P, T], *arguments: P.args, **named: P.kwargs
    ) -> list[T]:
        """Call every worker's compute thread, and wait as long as ``tick`` does not raise."""
        calls = self.compute(method, *arguments, **named)
        self.running = Running(method, calls)
        found = gather(calls, spoken(method), float("inf"), tick)
        self.running = None
        return found

    def compute(self, method: Method[P, T], *arguments: P.args, **named: P.kwargs) -> list[Call[T]]:
        """Call a method in every worker's compute thread."""
        return [worker.compute(method, *arguments, **named) for worker in self.workers]

    def compute_by_block(
        self, what: str, method: Method[P, T], *arguments: P.args, **named: P.kwargs
    ) -> list[T]:
        """Call a method in the compute thread of each block's first replica; return one answer per block.

        ``what`` says it in messages. It may take as long as a start does.
        """
        leaders = [self.workers[number] for number in self.topology.leaders]
        calls = [worker.compute(method, *arguments, **named) for worker in leaders]
        return gather(calls, what, START_LIVENESS * self.liveness)

    def ask(self, method: Method[P, T], *arguments: P.args, **named: P.kwargs) -> list[Call[T]]:
        """Call a method beside every worker's computation."""
        return [worker.ask(method, *arguments, **named) for worker in self.workers]

    def ask_one(self, worker: Worker, method: Method[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a method beside a worker's computation; return its answer.

        Raises
        ------
        LowdimfaError
            The error that the worker returned, a lost actor, or no answer within the liveness.
        """
        call = worker.ask(method, *arguments, **named)
        answered, _ = ray.wait([call.reference], timeout=self.liveness)
        if not answered:
            raise silent([worker], spoken(method), self.liveness)
        return call.answer(spoken(method))

    def abort(self, cause: LowdimfaError) -> LowdimfaError:
        """Stop every worker's computation and return the error that began it all.

        One worker's failure soon shows in the others as lost peers, so those count only if nothing else was reported.
        """
        self.ask(BlockWorker.abort, PeerError(f"the run was stopped: {cause.message}"))
        calls = [] if self.running is None else self.running.calls
        ended = outcomes(calls, self.liveness / 4).values()
        found = [cause, *(error for error in ended if error is not None)]
        lost = (error for error in found if isinstance(error, BlockLostError))
        return next((error for error in found if not isinstance(error, PeerError)), next(lost, cause))

    def close(self) -> None:
        """End all actors and free their places."""
        with contextlib.suppress(Exception):  # a dead or hanging actor can't be closed, only ended
            closing = [call.reference for call in self.ask(BlockWorker.close)]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers = []
        self._placement.free()

    def _job(self, worker: Worker, run: str, node: str) -> BlockJob:
        job = BlockJob.of(self._plan, worker.seat, run, str(self._place), self._user_code)
        return replace(job, node=node)
