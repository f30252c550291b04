"""Carries out a block's schedule: the one thread that owns the block's weights.

Other threads only put messages into the inbox. So there are no locks around the weights, and what a block computes
depends on the order of its messages alone.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from torch import Tensor

from lowdimfa.block import Block, ErrorKind
from lowdimfa.errors import PeerError
from lowdimfa.head import Broadcast, Evaluation, Head
from lowdimfa.network import StepResult
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from services.block.activations import Activation
from services.block.activations import Kind as ActivationKind
from services.block.inbox import Abort, Inbox, Message
from services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Cause,
    Compute,
    Done,
    EndAt,
    ErrorArrived,
    Event,
    Finished,
    Instruction,
    Policy,
    Publish,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from services.block.observer import Observer
from services.block.schedule import Schedule
from services.broadcast.subscriber import ErrorVector


class Data(Protocol):
    """Where the first block gets inputs, and the head targets."""

    def inputs(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's inputs."""

    def targets(self, ticket: Ticket) -> Tensor:
        """Return a training micro-batch's targets."""

    def evaluation_inputs(self, index: int) -> Tensor:
        """Return an evaluation batch's inputs."""

    def evaluation_targets(self, index: int) -> Tensor:
        """Return an evaluation batch's targets."""


class Neighbours(Protocol):
    """How a block reaches the others."""

    def send(self, kind: ActivationKind, ticket: Ticket, tensors: tuple[Tensor, ...]) -> None:
        """Send activations to the next block."""

    def release(self, activation: Activation) -> None:
        """Tell the previous block that its activations were consumed."""

    def publish(self, ticket: Ticket, kind: ErrorKind, error: Tensor) -> None:
        """Broadcast an error to all blocks."""


class BlockRunner:
    """Runs a block's segments of steps and its evaluations.

    Parameters
    ----------
    stage
        The block, or the head.
    policy
        Of its schedule.
    inbox, neighbours
        Where messages come from and go to.
    data
        In the first block and the head.
    observer
        Gets what was done when.
    patience
        Seconds without any message after which a wait is given up.

    Attributes
    ----------
    finished_steps
        Results that nobody has fetched yet, in the head.
    ends_at
        Where the present run of steps ends, once it was told to end early. Any thread may read both.
    """

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        inbox: Inbox,
        neighbours: Neighbours,
        data: Data | None,
        observer: Observer,
        patience: float,
    ) -> None:
        self.stage = stage
        self.finished_steps: deque[StepResult] = deque()
        self.ends_at: int | None = None
        self._policy = policy
        self._inbox = inbox
        self._neighbours = neighbours
        self._source = data
        self._observer = observer
        self._patience = patience
        self._activations: dict[Ticket, Activation] = {}
        self._evaluations: deque[Activation] = deque()
        self._errors: dict[tuple[Ticket, ErrorKind], Tensor] = {}
        self._outputs: dict[Ticket, tuple[Tensor, ...]] = {}
        self._broadcasts: dict[Ticket, Broadcast] = {}
        self._result: StepResult | None = None

    def run(self, first_step: int, last_step: int) -> int:
        """Run the steps ``first_step <= t < last_step``, or fewer if told so, and return the step reached.

        Raises
        ------
        LowdimfaError
            Something isn't finite, a message is wrong, a peer is lost or silent.
        """
        self.ends_at = None
        schedule = Schedule(self._policy, first_step, last_step)
        instructions = schedule.start()
        while True:
            event: Event | None = None
            for instruction in instructions:
                match instruction:
                    case Done():
                        self._observer.rest(schedule.last_step)
                        return schedule.last_step
                    case Wait(cause):
                        event = self._wait(schedule, cause)
                    case Send(ticket):
                        self._send(ticket)
                    case Publish(ticket):
                        self._publish(ticket)
                    case RunForward() | RunUpdate() | ApplyStep():
                        self._compute(instruction, schedule)
                        event = Finished(instruction)
            assert event is not None, "every list of instructions ends in work, a wait or the end"
            instructions = self._tell(schedule, event) or self._look_again(schedule)

    def evaluate(self, batches: int) -> Evaluation:
        """Pass the evaluation batches on; in the head, return loss and accuracy."""
        totals = Evaluation()
        for index in range(batches):
            activation = None if self._policy.first else self._next_evaluation(index)
            inputs = self._data.evaluation_inputs(index) if activation is None else activation.tensors[0]
            inputs = inputs.to(self.stage.device)
            if isinstance(self.stage, Head):
                targets = self._data.evaluation_targets(index).to(self.stage.device)
                self.stage.evaluate_outputs(inputs, targets, totals)
            else:
                self._neighbours.send("evaluate", Ticket(0, index), (self.stage.evaluate(inputs).cpu(),))
            if activation is not None:
                self._neighbours.release(activation)
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
        began = time.time()
        self._observer.begin("wait", schedule.waiting_for)
        event = None
        while event is None:
            event = self._event_of(self._next_message(schedule.waiting_for))
        self._observer.waited(schedule.applied_steps, cause, began)
        return event

    def _next_message(self, waiting_for: str) -> Message:
        message = self._inbox.take(self._patience)
        if message is None:
            raise PeerError(
                f"block {self.stage.index} heard nothing for {self._patience:.0f} s while it waited for the "
                f"{waiting_for}; raise run.liveness_seconds if a step may take longer",
                block=self.stage.index,
                setting="run.liveness_seconds",
            )
        return message

    def _event_of(self, message: Message) -> Event | None:
        """Keep what a message carries and return the event that it is, or None for an evaluation's activations."""
        match message:
            case Abort(error):
                raise error
            case EndAt():
                return message
            case Activation(kind="evaluate"):
                self._evaluations.append(message)
                return None
            case Activation(ticket=ticket):
                self._activations[ticket] = message
                return ActivationArrived(ticket)
            case ErrorVector(ticket=ticket, kind=kind, error=error):
                self._errors[ticket, kind] = error
                return ErrorArrived(ticket, kind)
        raise AssertionError(f"no other messages exist: {message}")

    def _compute(self, instruction: Compute, schedule: Schedule) -> None:
        began = time.time()
        match instruction:
            case RunForward(ticket, probe):
                self._observer.begin("forward", str(ticket))
                self._forward(ticket, probe)
                self._observer.did("forward", ticket, began)
                self._observer.in_flight(schedule.in_flight + 1, ticket.step - schedule.applied_steps)
            case RunUpdate(ticket, kind):
                self._observer.begin("update", str(ticket))
                error = self._errors.pop((ticket, kind)).to(self.stage.device)
                self._block.receive_error(ticket, error, kind)
                self._observer.did("update" if kind == "train" else "probe", ticket, began)
            case ApplyStep(step):
                self._observer.begin("step", f"step {step}")
                self._apply(step)
                self._observer.did("step", Ticket(step, 0), began)
        self._drain(schedule)

    def _drain(self, schedule: Schedule) -> None:
        """Tell the schedule what came during the computation, before it decides what is next."""
        while (message := self._inbox.take(0)) is not None:
            event = self._event_of(message)
            if event is not None:
                self._tell(schedule, event)

    def _forward(self, ticket: Ticket, probe: bool) -> None:
        activation = None if self._policy.first else self._activations.pop(ticket)
        tensors = (self._data.inputs(ticket),) if activation is None else activation.tensors
        clean, perturbed = (tensors[i].to(self.stage.device) for i in (0, -1))
        if isinstance(self.stage, Head):
            targets = self._data.targets(ticket).to(self.stage.device)
            sent = self.stage.forward(clean, targets, ticket, perturbed if probe else None)
            self._broadcasts[ticket] = sent
            self._count(ticket, sent)
        else:
            output = self._block.forward(clean, ticket).cpu()
            noisy = (self._block.probe(perturbed, ticket).cpu(),) if probe else ()
            self._outputs[ticket] = (output, *noisy)
        if activation is not None:
            self._neighbours.release(activation)

    def _count(self, ticket: Ticket, sent: Broadcast) -> None:
        if self._result is None:
            self._result = StepResult(ticket.step)
        self._result.add(sent.loss, sent.correct, sent.counted)

    def _apply(self, step: int) -> None:
        self.stage.step()
        if self._result is not None:
            self._observer.trained(self._result)
            self.finished_steps.append(self._result)
            self._result = None

    def _send(self, ticket: Ticket) -> None:
        began = time.time()
        self._observer.begin("send", str(ticket))
        self._neighbours.send("train", ticket, self._outputs.pop(ticket))
        self._observer.did("send", ticket, began)

    def _publish(self, ticket: Ticket) -> None:
        sent = self._broadcasts.pop(ticket)
        self._neighbours.publish(ticket, "train", sent.error.cpu())
        if sent.response is not None:
            self._neighbours.publish(ticket, "probe", sent.response.cpu())

    def _next_evaluation(self, index: int) -> Activation:
        waiting_for = f"activation of evaluation batch {index}"
        self._observer.begin("wait", waiting_for)
        while not self._evaluations:
            self._event_of(self._next_message(waiting_for))
        return self._evaluations.popleft()

    @property
    def _data(self) -> Data:
        assert self._source is not None, "only the first block and the head draw data"
        return self._source

    @property
    def _block(self) -> Block:
        assert isinstance(self.stage, Block)
        return self.stage
