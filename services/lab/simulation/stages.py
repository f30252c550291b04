"""What all pipelines with backpropagation share: a stage that sends outputs forward and gradients back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from lowdimfa.services.lab.simulation.machine import Machine

Work = Literal["forward", "backward", "weights"]


class Stage(ABC):
    """One stage of a pipeline; what it does next is up to its schedule.

    Parameters
    ----------
    machine
        Where it computes.
    index
        Of the stage.
    first_step, steps
        The steps from the first to before the second are run.
    stages
        All stages by index, this one among them once all are made.

    Attributes
    ----------
    gone
        Whether what still arrives or ends belongs to a run that was lost.
    """

    halves = 1
    """Parts of a backward pass."""

    frees: Work = "backward"
    """After which work a micro-batch is no longer kept."""

    def __init__(
        self, machine: Machine, index: int, first_step: int, steps: int, stages: Sequence[Stage]
    ) -> None:
        setting = machine.setting
        costs, coding = setting.blocks[index], setting.coding
        self.gone = False
        self._machine = machine
        self._index = index
        self._stages = stages
        self._first = index == 0
        self._last = index == len(setting.blocks) - 1
        backward = costs.update / self.halves
        self._seconds: dict[Work, float] = {
            "forward": costs.forward + (0.0 if self._first else coding),
            "backward": backward + (0.0 if self._last else coding),
            "weights": backward,
        }
        self._microbatches = setting.microbatches
        self._applied, self._steps = first_step, steps
        self._busy = False
        self._activations = self._gradients = 0  # here and not yet used

    @abstractmethod
    def next_work(self) -> Work | Literal["step"] | None:
        """Return what is next, or None if what it needs is not here."""

    @abstractmethod
    def done(self, work: Work) -> None:
        """Note that a pass has ended."""

    @abstractmethod
    def stepped(self) -> None:
        """Note that the optimiser's step has been applied."""

    def receive_activation(self) -> None:
        """Take the next micro-batch's output of the stage before."""
        self._activations += 1
        self.go_on()

    def receive_gradient(self) -> None:
        """Take the next micro-batch's gradient from the stage behind."""
        self._gradients += 1
        self.go_on()

    def go_on(self) -> None:
        """Begin the next piece of work, if nothing is being computed and what it needs is here."""
        if self._busy or self.gone or self._applied == self._steps:
            return
        work = self.next_work()
        if work is None:
            return
        self._busy = True
        if work == "step":
            self._machine.compute(
                self._index, self._machine.setting.blocks[self._index].step, self._step_ended
            )
        else:
            self._machine.compute(self._index, self._seconds[work], self._computed, work)

    def has_input(self, work: Work) -> bool:
        """Return whether the activation or the gradient that a pass begins with is here."""
        match work:
            case "forward":
                return self._first or self._activations > 0
            case "backward":
                return self._last or self._gradients > 0
            case "weights":
                return True

    def _computed(self, work: Work) -> None:
        self.done(work)
        if work == "forward":
            self._activations -= not self._first
            self._machine.keeps(self._index, 1)
        elif work == "backward":
            self._gradients -= not self._last
        if work == self.frees:
            self._machine.keeps(self._index, -1)
        if (work == "forward" and not self._last) or (work == "backward" and not self._first):
            self._machine.send(self._index, self._machine.setting.coding, self._sent, work)
        else:
            self._proceed()

    def _sent(self, work: Work) -> None:
        setting, uplink = self._machine.setting, self._machine.uplinks[self._index]
        if work == "forward":
            receive, boundary = self._stages[self._index + 1].receive_activation, self._index
        else:
            receive, boundary = self._stages[self._index - 1].receive_gradient, self._index - 1
        uplink.send(setting.microbatch_size * setting.activation_bytes[boundary], receive)
        self._proceed()

    def _proceed(self) -> None:
        self._busy = False
        self.go_on()

    def _step_ended(self) -> None:
        self._applied += 1
        self.stepped()
        self._machine.stepped(self._index)
        self._proceed()
