"""Backpropagation through a pipeline in simulated time: GPipe, 1F1B and zero-bubble.

Each stage sends its output forward and the gradient at its input back, over the same links. Weights are applied once
all gradients of the step are there, and every micro-batch sees those of the step before: staleness is 0. The orders
are those that were published, and fixed: what is next in a stage's order waits for what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Literal

from lowdimfa.services.lab.simulation.machine import Machine

Order = Literal["gpipe", "1f1b", "zero-bubble"]
Work = Literal["forward", "backward", "weights"]


def order_of_work(order: Order, stage: int, stages: int, microbatches: int) -> Iterator[Work]:
    """Yield what one stage does in one step: each pass for the next micro-batch in turn.

    ``backward`` is the whole backward pass in GPipe and 1F1B. In the zero-bubble schedule (ZB-H1) it is the half that
    the stage before waits for, the gradient at the input. The other half, the gradients of the ``weights``, comes
    later the later the stage: it fills the time for which 1F1B waits, and no stage keeps more than 1F1B's first.
    """
    ahead = microbatches if order == "gpipe" else min(microbatches, stages - stage)
    yield from repeat("forward", ahead)
    for microbatch in range(microbatches):
        yield "backward"
        if order == "zero-bubble" and microbatch >= stage:
            yield "weights"
        if microbatch < microbatches - ahead:
            yield "forward"
    if order == "zero-bubble":
        yield from repeat("weights", min(stage, microbatches))


class Stage:
    """One stage of the pipeline.

    Parameters
    ----------
    machine
        Where it computes.
    index
        Of the stage.
    steps
        Steps of the run.
    order
        The schedule.
    stages
        All stages by index, this one among them once all are made.
    """

    def __init__(self, machine: Machine, index: int, steps: int, order: Order, stages: list[Stage]) -> None:
        setting = machine.setting
        costs = setting.blocks[index]
        self._machine = machine
        self._index = index
        self._stages = stages
        self._last = index == len(setting.blocks) - 1
        self._frees: Work = "weights" if order == "zero-bubble" else "backward"
        halves = 2 if order == "zero-bubble" else 1
        self._seconds: dict[Work, float] = {
            "forward": costs.forward,
            "backward": costs.update / halves,
            "weights": costs.update / halves,
        }
        self._order = list(order_of_work(order, index, len(setting.blocks), setting.microbatches))
        self._position = 0
        self._steps_left = steps
        self._busy = False
        self._activations = self._gradients = 0  # here and not yet used

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
        if self._busy or not self._steps_left:
            return
        if self._position == len(self._order):
            self._busy = True
            step = self._machine.setting.blocks[self._index].step
            self._machine.compute(self._index, step, self._stepped)
            return
        work = self._order[self._position]
        if self._has_what_it_needs(work):
            self._busy = True
            self._machine.compute(self._index, self._seconds[work], self._computed, work)

    def _has_what_it_needs(self, work: Work) -> bool:
        match work:
            case "forward":
                return self._index == 0 or self._activations > 0
            case "backward":
                return self._last or self._gradients > 0
            case "weights":
                return True

    def _computed(self, work: Work) -> None:
        self._position += 1
        if work == "forward":
            self._activations -= self._index > 0
            self._machine.keeps(self._index, 1)
        elif work == "backward":
            self._gradients -= not self._last
        if work == self._frees:
            self._machine.keeps(self._index, -1)
        if (work == "forward" and not self._last) or (work == "backward" and self._index > 0):
            self._machine.send(self._index, self._sent, work)
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

    def _stepped(self) -> None:
        self._position = 0
        self._steps_left -= 1
        self._machine.stepped(self._index)
        self._proceed()


def start_backpropagation(machine: Machine, steps: int, order: Order) -> None:
    """Start a run of so many steps."""
    stages: list[Stage] = []
    stages += [Stage(machine, index, steps, order, stages) for index in range(len(machine.setting.blocks))]
    for stage in stages:
        stage.go_on()
