"""Carries out a block's schedule: the one thread that owns the block's weights.

Other threads only put messages into the inbox. So there are no locks around the weights, and what a block computes
depends on the order of its messages alone.
"""

from __future__ import annotations

import math

from lowdimfa.errors import PeerError, ProtocolError
from lowdimfa.head import Evaluation, Head
from lowdimfa.services.block.exchange import Exchange, Shard
from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Cause,
    Compute,
    Done,
    EndAt,
    ErrorArrived,
    Event,
    Finished,
    Halt,
    Instruction,
    Policy,
    Publish,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.mailboxes import Abort, Arrived, Inbox
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.services.block.work import Neighbours, Work
from lowdimfa.services.stream.frames import ErrorVector, Message
from lowdimfa.tickets import Ticket

LOOKS = 4
"""Times per liveness that a block without a message asks for a repetition."""


class BlockRunner:
    """Runs a block's segments of steps and its evaluations.

    Parameters
    ----------
    work
        What the block computes and sends.
    policy
        Of its schedule.
    inbox, neighbours
        Where messages come from.
    observer
        Gets what was done when.
    liveness
        Of the run, in seconds.
    patience
        Seconds without any message after which a wait is given up.
    exchange
        Adds gradients up with the other replicas of the block, if there are any.
    evaluating
        How many times the patience an evaluation batch may take to come.

    Attributes
    ----------
    ends_at
        Where the present run of steps ends, once it was told to end early. Any thread may read it.
    """

    def __init__(
        self,
        work: Work,
        policy: Policy,
        inbox: Inbox,
        neighbours: Neighbours,
        observer: Observer,
        liveness: float,
        patience: float,
        exchange: Exchange | None = None,
        evaluating: float = 1.0,
    ) -> None:
        self._evaluating = evaluating
        self.work = work
        self.ends_at: int | None = None
        self._policy = policy
        self._inbox = inbox
        self._neighbours = neighbours
        self._observer = observer
        self._look, self._patience = liveness / LOOKS, patience
        self._exchange = exchange
        self._evaluations: dict[int, Message] = {}
        self._first_step = 0

    @property
    def published(self) -> RunUpdate | None:
        """The last error that the head has broadcast in the present run of steps, or in the last one."""
        last = self.work.published
        return None if last is None or last.ticket.step < self._first_step else last

    def run(self, first_step: int, last_step: int) -> int:
        """Run the steps ``first_step <= t < last_step``, or fewer if told so, and return the step reached.

        Raises
        ------
        LowdimfaError
            Something isn't finite, a message is wrong, a peer is lost or silent.
        """
        self.ends_at, self._first_step = None, first_step
        self.work.begin(first_step)
        try:
            return self._run(Schedule(self._policy, first_step, last_step))
        finally:
            self._observer.idle()
            if self._policy.head:  # however it ends: others may be told to wait for what it has broadcast
                self.work.settle(self._patience)

    def _run(self, schedule: Schedule) -> int:
        instructions = schedule.start()
        while True:
            event: Event | None = None
            for instruction in instructions:
                match instruction:
                    case Done():
                        self._observer.rest(schedule.applied_steps)
                        return schedule.applied_steps
                    case Wait(cause):
                        event = self._wait(schedule, cause)
                    case Send(ticket):
                        self.work.send(ticket)
                    case Publish(ticket):
                        self.work.publish(ticket)
                    case RunForward() | RunUpdate() | ApplyStep():
                        self._compute(instruction, schedule)
                        event = Finished(instruction)
            assert event is not None, "every list of instructions ends in work, a wait or the end"
            instructions = self._tell(schedule, event)
            self._observer.in_flight(schedule.in_flight)
            instructions = instructions or self._look_again(schedule)

    def evaluate(self, batches: int) -> Evaluation:
        """Pass the evaluation batches on; in the head, return loss and accuracy."""
        totals = Evaluation()
        for index in range(self._policy.rank, batches, self._policy.replicas):
            self.work.evaluate(index, None if self._policy.first else self._next_evaluation(index), totals)
        if isinstance(self.work.stage, Head):
            self._observer.begin("evaluate", "the metrics of all batches")
            totals.metrics = self.work.stage.metrics.compute()
        self._observer.rest(self._observer.applied_steps)
        return totals

    def _look_again(self, schedule: Schedule) -> list[Instruction]:
        """Wait on: what came was known before."""
        while not (instructions := self._tell(schedule, self._wait(schedule, "activation"))):
            pass
        return instructions

    def _tell(self, schedule: Schedule, event: Event) -> list[Instruction]:
        instructions = schedule.handle(event)
        if isinstance(event, EndAt):
            self.ends_at = schedule.last_step
        return instructions

    def _wait(self, schedule: Schedule, cause: Cause) -> Event:
        began = self._observer.waiting(cause)
        self._observer.begin("wait", schedule.waiting_for)
        event = None
        while event is None:
            event = self._event_of(self._next_message(schedule.waiting_for))
        self._observer.waited(schedule.applied_steps, cause, began)
        return event

    def _next_message(self, waiting_for: str, times: float = 1.0) -> Arrived:
        patience = times * self._patience
        for _ in range(math.ceil(patience / self._look)):
            message = self._inbox.take(self._look)
            if message is not None:
                return message
            self._neighbours.renew()
        raise PeerError(
            f"block {self.work.stage.index} heard nothing for {patience:.0f} s while it waited for the "
            f"{waiting_for}; raise run.liveness_seconds if a step may take longer",
            block=self.work.stage.index,
            setting="run.liveness_seconds",
        )

    def _event_of(self, message: Arrived) -> Event | None:
        """Keep what a message carries and return the event that it is, or None for an evaluation's activations."""
        match message:
            case Abort(error):
                raise error
            case EndAt() | Halt():
                return message
            case Message(kind="evaluate", ticket=ticket):
                self._evaluations[ticket.microbatch] = message
                return None
            case Message(kind="train", ticket=ticket):
                self.work.keep(message)
                return ActivationArrived(ticket)
            case ErrorVector(ticket=ticket, kind=kind):
                if not self._policy.owns(ticket):
                    return None  # another replica of the block works on it
                self.work.keep(message)
                return ErrorArrived(ticket, kind)
            case Shard() if self._exchange is not None:
                self._exchange.keep(message)
                return None
            case Message(kind=kind, ticket=ticket):
                raise ProtocolError(
                    f"block {self.work.stage.index}, {ticket}: a {kind} from the block before",
                    block=self.work.stage.index,
                    step=ticket.step,
                )
        raise AssertionError(f"no other messages exist: {message}")

    def _compute(self, instruction: Compute, schedule: Schedule) -> None:
        match instruction:
            case RunForward(ticket, probe):
                if self.work.reads:
                    began = self._observer.waiting("data")
                    self.work.read(ticket)
                    self._observer.waited(ticket.step, "data", began)
                began = self._observer.working("forward")
                self._observer.begin("forward", str(ticket))
                self.work.forward(ticket, probe)
                self._observer.did("forward", ticket, began)
                self._observer.staleness(ticket.step - schedule.applied_steps)
            case RunUpdate(ticket, kind):
                work = "update" if kind == "train" else "probe"
                began = self._observer.working(work)
                self._observer.begin("update", str(ticket))
                self.work.update(ticket, kind)
                self._observer.did(work, ticket, began)
            case ApplyStep(step):
                if self._exchange is not None:
                    self._add_up(self._exchange, step, schedule)
                began = self._observer.working("step")
                self._observer.begin("step", f"step {step}")
                self.work.apply(step)
                self._observer.did("step", Ticket(step, 0), began)
        self._drain(schedule)

    def _add_up(self, exchange: Exchange, step: int, schedule: Schedule) -> None:
        """Add the step's gradients up with the other replicas, and learn from rank 0 where the run of steps ends."""
        began = self._observer.waiting("replica")
        self._observer.begin("step", f"step {step}")
        exchange.begin(step, schedule.last_step)
        while (awaited := exchange.advance()) is not None:
            self._observer.begin("wait", awaited)
            event = self._event_of(self._next_message(awaited))
            if event is not None:
                self._tell(schedule, event)
        end = exchange.finish()
        self._observer.waited(step, "replica", began)
        if self._policy.rank > 0:
            self._tell(schedule, EndAt(end))

    def _drain(self, schedule: Schedule) -> None:
        """Tell the schedule what came during the computation, before it decides what is next."""
        while (message := self._inbox.take(0)) is not None:
            event = self._event_of(message)
            if event is not None:
                self._tell(schedule, event)

    def _next_evaluation(self, index: int) -> Message:
        waiting_for = f"activation of evaluation batch {index} from the block before"
        self._observer.begin("wait", waiting_for)
        while index not in self._evaluations:
            self._event_of(self._next_message(waiting_for, self._evaluating))
        return self._evaluations.pop(index)
