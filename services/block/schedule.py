"""The order of work inside one block, as a state machine without I/O, clocks or threads.

Events go in (an activation or an error arrived, a computation finished, a peer was lost), instructions come
out. Whoever runs the block carries them out and reports back, so every interleaving can be tested in memory.

The policy never deadlocks. The next update needs an error that its own forward has caused, and a forward
waits for nothing but an activation, a slot of the window or a step, which earlier forwards and updates bring.
"""

from __future__ import annotations

from lowdimfa.errors import PeerError, ProtocolError
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
    PeerLost,
    Policy,
    Publish,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.tickets import Ticket


class Schedule:
    """Decide what one block does next.

    At most one computation is outstanding; what arrives meanwhile is recorded. Errors and activations may
    arrive out of order and more than once, and are used once, in ticket order. One of several replicas of a block walks
    its own tickets only, and ignores the errors of the others'.

    Parameters
    ----------
    policy
        What decides when the block may work.
    first_step, last_step
        The steps ``first_step <= t < last_step`` are run. `EndAt` lowers ``last_step``, never below what was begun:
        a step of which a micro-batch has been forwarded, here or in an earlier block, is run to its end.
    """

    def __init__(self, policy: Policy, first_step: int, last_step: int) -> None:
        self._policy = policy
        self._first_step = first_step
        self._last_step = last_step
        self._applied_steps = first_step
        self._forward = Ticket(first_step, policy.rank)
        self._update = RunUpdate(self._forward, "train")
        self._activations: set[Ticket] = set()
        self._errors: set[RunUpdate] = set()
        self._running: Compute | None = None
        self._halt: Halt | None = None

    @property
    def last_step(self) -> int:
        """The step before which the run ends, as far as is known."""
        return self._last_step

    @property
    def applied_steps(self) -> int:
        """Optimiser steps applied so far, with those before ``first_step``."""
        return self._applied_steps

    @property
    def published(self) -> RunUpdate | None:
        """The last error that the head was told to broadcast in this run of steps, or None before the first."""
        index = self._policy.index(self._forward) - 1
        if index < self._first_step * self._policy.share:
            return None
        ticket = self._policy.ticket(index)
        return RunUpdate(ticket, "probe" if self._policy.probed(ticket) else "train")

    @property
    def in_flight(self) -> int:
        """Micro-batches forwarded whose train update has not finished; always 0 where there are no updates."""
        if not self._policy.updates:
            return 0
        forwarded, updated = self._policy.index(self._forward), self._policy.index(self._update.ticket)
        return forwarded - updated - (self._update.kind == "probe")

    @property
    def waiting_for(self) -> str:
        """What the block waits for, in words, such as ``train error of step 3, micro-batch 1 from the head``."""
        match self._running or self._decide():
            case Done():
                return "nothing, all steps are applied"
            case Wait("activation"):
                return f"activation of {self._forward} from the block before"
            case Wait(cause):
                error = f"{self._update.kind} error of {self._update.ticket} from the head"
                return (
                    error if cause == "error" else f"{error} (the {cause} limit holds back {self._forward})"
                )
            case ApplyStep(step):
                return f"its own optimiser, at step {step}"
            case RunForward(ticket) | RunUpdate(ticket):
                return f"its own computation of {ticket}"
        raise AssertionError("every decision has its words")

    def start(self) -> list[Instruction]:
        """Return the first instructions; call it once, before any event."""
        return self._proceed()

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event and return what to do now, in this order.

        Empty while a computation is outstanding, and for an event that was seen before.

        Raises
        ------
        ProtocolError
            An event that can't belong to this block's run.
        PeerError
            A peer was lost before the last step was applied.
        """
        match event:
            case PeerLost(peer, reason):
                return self._lose(peer, reason)
            case ActivationArrived(ticket):
                fresh = self._record_activation(ticket)
            case ErrorArrived(ticket, kind):
                fresh = self._record_error(RunUpdate(ticket, kind))
            case EndAt(step):
                fresh = self._lower_end(step)
            case Halt():
                self._halt, fresh = event, True
            case Finished(instruction):
                return self._finish(instruction)
        return self._proceed() if fresh and self._running is None else []

    def _proceed(self) -> list[Instruction]:
        decision = self._decide()
        self._running = None if isinstance(decision, Wait | Done) else decision
        return [decision]

    def _decide(self) -> Compute | Wait | Done:
        if self._applied_steps == self._last_step:
            return Done()
        completed = self._update.ticket if self._policy.updates else self._forward
        if completed.step > self._applied_steps:
            return ApplyStep(self._applied_steps)
        if self._update in self._errors:
            return self._update
        if self._halt is not None:
            return Wait("error") if self._awaits(self._halt.through) else Done()
        cause = self._forward_held_back_by()
        return Wait(cause) if cause else RunForward(self._forward, self._policy.probed(self._forward))

    def _awaits(self, last: RunUpdate | None) -> bool:
        return self._policy.updates and last is not None and self._order(self._update) <= self._order(last)

    def _forward_held_back_by(self) -> Cause | None:
        if self._forward.step == self._last_step:
            return "error"
        if self._applied_steps < self._forward.step - self._policy.staleness:
            return "staleness"
        if self.in_flight >= self._policy.window:
            return "window"
        if not self._policy.first and self._forward not in self._activations:
            return "activation"
        return None

    def _record_activation(self, ticket: Ticket) -> bool:
        self._require(not self._policy.first, ticket, "an activation for the first block")
        self._require_in_range(ticket, "an activation")
        self._require(self._policy.owns(ticket), ticket, "an activation for another replica")
        if ticket < self._forward or ticket in self._activations:
            return False
        self._activations.add(ticket)
        return True

    def _record_error(self, update: RunUpdate) -> bool:
        ticket = update.ticket
        self._require(
            self._policy.updates, ticket, "an error for the head, or for a block that learns nothing"
        )
        if not self._policy.owns(ticket):
            return False  # it may come when the run of steps has ended here
        self._require_in_range(ticket, "an error")
        self._require(ticket < self._forward, ticket, "an error for a micro-batch that was not forwarded")
        if update.kind == "probe":
            self._require(self._policy.probed(ticket), ticket, "a probe error, but it carries no probe")
        if self._order(update) < self._order(self._update) or update in self._errors:
            return False
        self._errors.add(update)
        return True

    def _lower_end(self, step: int) -> bool:
        policy = self._policy
        inside = self._forward.microbatch > policy.rank or isinstance(self._running, RunForward)
        begun = [self._forward.step + inside, *(ticket.step + 1 for ticket in self._activations)]
        if policy.first and policy.replicas > 1 and policy.rank == 0:
            # The others hear of the end with the next sum of gradients, until which they may run ahead of it.
            next_sum = self._applied_steps + isinstance(self._running, ApplyStep)
            begun.append(next_sum + policy.staleness + 1)
        lowered = min(self._last_step, max(step, *begun))
        changed = lowered < self._last_step
        self._last_step = lowered
        return changed

    def _finish(self, instruction: Compute) -> list[Instruction]:
        if instruction != self._running:
            step = instruction.step if isinstance(instruction, ApplyStep) else instruction.ticket.step
            raise ProtocolError(f"step {step}: {instruction} finished without being outstanding", step=step)
        match instruction:
            case RunForward(ticket, probe):
                self._activations.discard(ticket)
                self._forward = self._policy.ticket(self._policy.index(ticket) + 1)
                return [Publish(ticket, probe) if self._policy.head else Send(ticket), *self._proceed()]
            case RunUpdate(ticket, kind):
                self._errors.discard(instruction)
                if kind == "train" and self._policy.probed(ticket):
                    self._update = RunUpdate(ticket, "probe")
                else:
                    self._update = RunUpdate(self._policy.ticket(self._policy.index(ticket) + 1), "train")
            case ApplyStep():
                self._applied_steps += 1
        return self._proceed()

    def _lose(self, peer: str, reason: str) -> list[Instruction]:
        if self._applied_steps == self._last_step:
            return []  # peers that have finished too may leave in any order
        message = f"lost {peer} ({reason}) while waiting for {self.waiting_for}"
        raise PeerError(message, step=self._applied_steps)

    def _require(self, allowed: bool, ticket: Ticket, found: str) -> None:
        if not allowed:
            raise ProtocolError(f"{ticket}: {found}", step=ticket.step)

    def _require_in_range(self, ticket: Ticket, found: str) -> None:
        first, last, microbatches = self._first_step, self._last_step - 1, self._policy.microbatches
        inside = first <= ticket.step <= last and 0 <= ticket.microbatch < microbatches
        run = f"steps {first} to {last} of {microbatches} micro-batches each"
        self._require(inside, ticket, f"{found} outside the run, which has {run}")

    @staticmethod
    def _order(update: RunUpdate) -> tuple[Ticket, bool]:
        return update.ticket, update.kind == "probe"
