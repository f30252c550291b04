"""Backpropagation through a pipeline in simulated time: GPipe, 1F1B, zero-bubble, and 2BW, which doesn't wait.

Each stage sends its output forward and the gradient at its input back, over the same links.

In the first three, weights are applied once all gradients of the step are there, and every micro-batch sees those of the
step before: staleness is 0. Their orders are those that were published, and fixed: what is next in a stage's order waits
for what it needs. 2BW (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", ICML 2021) applies exact
gradients one step late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Literal

from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.stages import Stage, Work

Order = Literal["gpipe", "1f1b", "zero-bubble"]


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


class FixedOrder(Stage):
    """A stage that does the same in every step, and its optimiser's step at the end."""

    order: Order = "gpipe"

    def __init__(
        self, machine: Machine, index: int, first_step: int, steps: int, stages: Sequence[Stage]
    ) -> None:
        super().__init__(machine, index, first_step, steps, stages)
        count = len(machine.setting.blocks)
        self._order = list(order_of_work(self.order, index, count, self._microbatches))
        self._position = 0

    def next_work(self) -> Work | Literal["step"] | None:
        """Return what comes next in the order."""
        if self._position == len(self._order):
            return "step"
        work = self._order[self._position]
        return work if self.has_input(work) else None

    def done(self, work: Work) -> None:
        """Go on in the order."""
        self._position += 1

    def stepped(self) -> None:
        """Begin the order again."""
        self._position = 0


class OneForwardOneBackward(FixedOrder):
    """1F1B."""

    order = "1f1b"


class ZeroBubble(FixedOrder):
    """ZB-H1."""

    order = "zero-bubble"
    halves = 2
    frees = "weights"


class TwoVersions(Stage):
    """2BW: one forward, one backward, no flush between steps, and two versions of the weights.

    The micro-batches of step ``t`` see the weights after the first ``t - 1`` steps, in every stage, so that gradients are
    exact for the weights that the forward pass saw. A forward pass therefore waits until those are there.
    """

    wide = False
    """Whether stages keep as many micro-batches as two versions allow, not only as many as 1F1B does."""

    def __init__(
        self, machine: Machine, index: int, first_step: int, steps: int, stages: Sequence[Stage]
    ) -> None:
        super().__init__(machine, index, first_step, steps, stages)
        self._forwards = self._backwards = first_step * self._microbatches
        self._fill = len(machine.setting.blocks) - index  # as many as 1F1B keeps
        self._most = 2 * self._microbatches if self.wide else self._fill

    def next_work(self) -> Work | Literal["step"] | None:
        """Return the step if its gradients are there, else one of the passes, in turn once the pipeline is filled."""
        microbatches, in_flight = self._microbatches, self._forwards - self._backwards
        if self._backwards == (self._applied + 1) * microbatches:
            return "step"
        backward = in_flight > 0 and self.has_input("backward")
        step = self._forwards // microbatches
        allowed = step < self._steps and step <= self._applied + 1 and in_flight < self._most
        if allowed and self.has_input("forward") and (in_flight < self._fill or not backward):
            return "forward"
        return "backward" if backward else None

    def done(self, work: Work) -> None:
        """Count it."""
        self._forwards += work == "forward"
        self._backwards += work == "backward"

    def stepped(self) -> None:
        """Go on: there is no flush."""


class WideTwoVersions(TwoVersions):
    """2BW with more micro-batches in flight than were published, so that latency is hidden."""

    wide = True


BACKPROPAGATION: dict[str, type[Stage]] = {
    "gpipe": FixedOrder,
    "1f1b": OneForwardOneBackward,
    "zero-bubble": ZeroBubble,
    "2bw": TwoVersions,
    "2bw-wide": WideTwoVersions,
}
"""Schedules of backpropagation by name."""


def start_backpropagation(machine: Machine, steps: int, name: str, first_step: int = 0) -> list[Stage]:
    """Start a run up to a step, and return its stages."""
    make: Callable[..., Stage] = BACKPROPAGATION[name]
    stages: list[Stage] = []
    stages += [
        make(machine, index, first_step, steps, stages) for index in range(len(machine.setting.blocks))
    ]
    for stage in stages:
        stage.go_on()
    return stages
