"""What the loss of a block does to a run in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lowdimfa.services.lab.simulation.decoupled import DecoupledBlock
from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.trouble import Trouble


class Worker(Protocol):
    """A block or a stage, which can be taken out of the run."""

    gone: bool


class Losses:
    """Takes lost blocks out of a run, and starts all blocks anew once they are back.

    With ``rejoin`` it does what the runtime does (``lowdimfa.services.trainer.rescue``): the head comes to rest first,
    the others after the updates up to its last error; what was begun beyond is done again. Otherwise all blocks stop at
    once and go back to the last checkpoint.

    Parameters
    ----------
    machine
        Where they compute.
    trouble
        What is lost when.
    begin
        Starts all blocks at a step and returns them.
    """

    def __init__(self, machine: Machine, trouble: Trouble, begin: Callable[[int], Sequence[Worker]]) -> None:
        self._machine = machine
        self._trouble = trouble
        self._begin = begin
        self._lost: set[int] = set()
        self._rested: set[int] = set()
        self._back_at = 0.0
        self._workers = begin(0)
        for loss in trouble.lost:
            machine.clock.at(loss.at, self._lose, loss.block)

    def _lose(self, block: int) -> None:
        machine = self._machine
        self._back_at = machine.clock.now + self._trouble.recovery
        self._lost.add(block)
        self._stop(block)
        head = len(self._workers) - 1
        if not self._drains:
            for index in range(head + 1):
                self._stop(index)
        elif head in self._lost:
            self._halt_others(None)
        else:
            self._decoupled(head).halt(None, self._head_rests)
        machine.clock.at(self._back_at, self._go_on)

    @property
    def _drains(self) -> bool:
        return self._trouble.rejoin and isinstance(self._workers[0], DecoupledBlock)

    def _decoupled(self, index: int) -> DecoupledBlock:
        found = self._workers[index]
        assert isinstance(found, DecoupledBlock)
        return found

    def _stop(self, index: int) -> None:
        self._workers[index].gone = True
        self._machine.stop(index)

    def _head_rests(self, index: int) -> None:
        self._rested.add(index)
        self._halt_others(self._decoupled(index))

    def _halt_others(self, head: DecoupledBlock | None) -> None:
        through = None if head is None else head.published
        # Taken now: the last of them to rest may let a new run begin, whose blocks go on.
        others = [
            self._decoupled(index) for index in range(len(self._workers) - 1) if index not in self._lost
        ]
        for block in others:
            block.halt(through, self._rests)
        self._go_on()

    def _rests(self, index: int) -> None:
        self._rested.add(index)
        self._go_on()

    def _go_on(self) -> None:
        """Start all blocks anew, if the lost ones are back and the others rest."""
        machine, left = self._machine, set(range(len(self._workers))) - self._lost
        if (
            not self._lost
            or machine.clock.now < self._back_at - 1e-9
            or (self._drains and left - self._rested)
        ):
            return
        # Blocks that learn nothing may be steps ahead: the run's are those of the others.
        paced = left & {*machine.setting.subscribers, len(self._workers) - 1}
        if self._drains and paced:
            step = max(machine.steps[index] for index in paced)
        else:
            every = self._trouble.checkpoint_every
            step = len(machine.step_times) // every * every
        for index in range(len(self._workers)):
            self._stop(index)
        self._lost.clear()
        self._rested.clear()
        machine.go_back(step)
        self._workers = self._begin(step)
