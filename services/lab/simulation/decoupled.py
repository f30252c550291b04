"""The method in simulated time: every block driven by the schedule that drives it in a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Compute,
    Done,
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
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.services.lab.simulation.machine import Machine


class DecoupledBlock:
    """One block's compute thread: it carries out instructions one after the other, as a run's `Runner` does.

    Parameters
    ----------
    machine
        Where it computes.
    index
        Of the block.
    steps
        The run ends before this step.
    blocks
        All blocks by index, this one among them once all are made.
    first_step
        Where it begins.

    Attributes
    ----------
    gone
        Whether what still arrives or ends belongs to a run that was lost.
    """

    def __init__(
        self, machine: Machine, index: int, steps: int, blocks: list[DecoupledBlock], first_step: int = 0
    ) -> None:
        self.gone = False
        self._rested: Callable[[int], None] | None = None
        setting = machine.setting
        self._machine = machine
        self._index = index
        self._blocks = blocks
        self._costs = setting.blocks[index]
        self._coding = setting.coding
        self._head = index == len(setting.blocks) - 1
        self._samples = setting.microbatch_size
        self._inbox: deque[Event] = deque()
        self._waits = False
        self._window = setting.in_flight
        self._ahead = 0  # outputs that the next block has not taken
        self._held: list[Instruction] = []  # until it takes one of them
        self._policy = Policy(
            index == 0,
            self._head,
            setting.microbatches,
            self._window,
            setting.staleness,
            learns=self._costs.learns,
        )
        self._schedule = Schedule(self._policy, first_step, steps)

    def start(self) -> None:
        """Begin to work."""
        self._carry_out(self._schedule.start())

    @property
    def published(self) -> RunUpdate | None:
        """The last error that the head has broadcast."""
        return self._schedule.published

    def halt(self, through: RunUpdate | None, rested: Callable[[int], None]) -> None:
        """Come to rest after the update of that error, or of those that are here; then call a function."""
        self._rested = rested
        self.receive(Halt(through))
        held, self._held = self._held, []
        if held:
            self._carry_out(held[1:])  # the next block won't get it

    def receive(self, event: Event) -> None:
        """Take what a message brings, at once or after the present computation."""
        if self.gone:
            return
        if self._waits:
            self._tell(event)
        else:
            self._inbox.append(event)

    def release(self) -> None:
        """Note that the next block has taken an output, which makes room for another one."""
        self._ahead -= 1
        if self._held and not self.gone:
            held, self._held = self._held, []
            self._carry_out(held)

    def _tell(self, event: Event) -> None:
        instructions = self._schedule.handle(event)
        if instructions:
            self._waits = False
            self._carry_out(instructions)

    def _carry_out(self, instructions: list[Instruction]) -> None:
        """Begin the first of some instructions; the others follow when it has ended."""
        match instructions[0]:
            case Done():
                if self._rested is not None:
                    self.gone = True
                    self._rested(self._index)
            case Wait():
                self._wait()
            case Send() if self._ahead == self._window and self._rested is None:
                self._held = instructions  # errors hold other blocks back before it comes to this
            case Send() | Publish() as message:
                coding = self._coding if isinstance(message, Send) else 0.0
                self._machine.send(self._index, coding, self._sent, message, instructions[1:])
            case RunForward() | RunUpdate() | ApplyStep() as work:
                self._machine.compute(self._index, self._seconds(work), self._computed, work)

    def _seconds(self, work: Compute) -> float:
        match work:
            case RunForward():
                decoding = self._coding if self._index else 0.0
                return self._costs.forward + decoding + (self._costs.update if self._head else 0.0)
            case RunUpdate():
                return self._costs.update
            case ApplyStep():
                return self._costs.step

    def _wait(self) -> None:
        self._waits = True
        while self._waits and self._inbox:
            self._tell(self._inbox.popleft())

    def _computed(self, work: Compute) -> None:
        match work:
            case RunForward():
                if self._policy.updates:
                    self._machine.keeps(self._index, 1)
                if self._index:
                    self._blocks[self._index - 1].release()
            case RunUpdate():
                self._machine.keeps(self._index, -1)
            case ApplyStep():
                self._machine.stepped(self._index)
        while self._inbox:
            self._schedule.handle(self._inbox.popleft())
        self._carry_out(self._schedule.handle(Finished(work)))

    def _sent(self, message: Send | Publish, rest: list[Instruction]) -> None:
        """Let the message go; the head's goes to every other block, one copy each."""
        uplink, setting = self._machine.uplinks[self._index], self._machine.setting
        if isinstance(message, Send):
            size = self._samples * setting.activation_bytes[self._index]
            self._ahead += 1
            uplink.send(size, self._blocks[self._index + 1].receive, ActivationArrived(message.ticket))
        else:
            error = ErrorArrived(message.ticket, "train")
            for index in setting.subscribers:
                uplink.send(self._samples * setting.error_bytes, self._blocks[index].receive, error)
        self._carry_out(rest)


def start_decoupled(machine: Machine, steps: int, first_step: int = 0) -> list[DecoupledBlock]:
    """Start a run up to a step, and return its blocks."""
    blocks: list[DecoupledBlock] = []
    blocks += [
        DecoupledBlock(machine, index, steps, blocks, first_step)
        for index in range(len(machine.setting.blocks))
    ]
    for block in blocks:
        block.start()
    return blocks
