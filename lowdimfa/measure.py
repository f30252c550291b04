"""What the work of a network's blocks really takes, timed piece by piece."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.config import FeedbackConfig
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Broadcast, Head
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation

Piece = Literal["forward", "update", "step"]

WARM_UP, REPETITIONS, FEWEST = 2, 7, 3
"""Steps that are run before any counts, steps that count, and as many of these if they take long."""

PATIENCE = 20.0
"""Seconds after which `measure_times` is content with `FEWEST` repetitions."""


@dataclass(frozen=True)
class StageTime:
    """What a block's work takes, medians in seconds.

    Attributes
    ----------
    forward
        Of a micro-batch. In the head with loss, backward pass and the broadcast error.
    update
        Of a micro-batch: the feedback and the backward pass within the block. 0 in the head.
    step
        Of the optimiser and the feedback's rule, once per step.
    """

    forward: float
    update: float
    step: float

    def per_microbatch(self, microbatches: int) -> float:
        """Return all of it for one micro-batch, of which a step has so many."""
        return self.forward + self.update + self.step / microbatches


def measure_times(
    blocks: Sequence[Block],
    head: Head,
    feedback: FeedbackConfig,
    batches: Sequence[tuple[Activation, Tensor]],
    microbatches: int,
    staleness: int,
) -> list[StageTime]:
    """Train for some steps in this process, with torch's present number of threads, and time every piece of work.

    The stages learn, so give it some that nobody needs. The global random state stays as it was.

    Parameters
    ----------
    blocks, head
        Of one network.
    feedback
        Its feedback, which says how often a probe joins a micro-batch: its cost is counted in proportion.
    batches
        Inputs and targets of micro-batches, two at least if the run has as many per step: only one carries a probe.
    microbatches
        Of a step of the run.
    staleness
        Of the run. Above 0 forwards run ahead of updates here too, so that weights are kept for these.

    Returns
    -------
    list of StageTime
        In the order of the blocks, the head last.
    """
    with unchanged_generators(head.device):
        run = _Run(blocks, head, feedback, batches)
        ahead = min(staleness, 1)
        for step in range(ahead):
            run.forward(step)
        began = time.perf_counter()
        for step in range(WARM_UP + REPETITIONS):
            run.forward(step + ahead)
            run.update(step)
            if step == WARM_UP - 1:
                run.taken.clear()
            if step >= WARM_UP + FEWEST - 1 and time.perf_counter() - began > PATIENCE:
                break
    return run.times(microbatches)


def make_step(
    blocks: Sequence[Block],
    head: Head,
    feedback: FeedbackConfig,
    batches: Sequence[tuple[Activation, Tensor]],
) -> None:
    """Train for one step, so that optimisers have the state that they keep; as for `measure_times`."""
    with unchanged_generators(head.device):
        run = _Run(blocks, head, feedback, batches)
        run.forward(0)
        run.update(0)


class _Run:
    """A few steps of training, timed."""

    def __init__(
        self,
        blocks: Sequence[Block],
        head: Head,
        feedback: FeedbackConfig,
        batches: Sequence[tuple[Activation, Tensor]],
    ) -> None:
        self._blocks, self._head, self._feedback = blocks, head, feedback
        self._batches = [(inputs.to(head.device), targets.to(head.device)) for inputs, targets in batches]
        self._sent: dict[Ticket, Broadcast] = {}
        self.taken: dict[tuple[int, Piece, bool], list[float]] = defaultdict(list)

    def forward(self, step: int) -> None:
        """Pass the micro-batches of a step through all blocks, one block after the other: each keeps its caches warm."""
        tickets = [Ticket(step, microbatch) for microbatch in range(len(self._batches))]
        clean = {ticket: inputs for ticket, (inputs, _) in zip(tickets, self._batches, strict=True)}
        perturbed = {ticket: clean[ticket] for ticket in tickets if self._feedback.probes(ticket)}
        for block in self._blocks:
            for ticket in tickets:
                with self._timing(block, "forward", ticket):
                    clean[ticket] = block.forward(clean[ticket], ticket)
                    if ticket in perturbed:
                        perturbed[ticket] = block.probe(perturbed[ticket], ticket)
        for ticket, (_, targets) in zip(tickets, self._batches, strict=True):
            with self._timing(self._head, "forward", ticket):
                sent = self._head.forward(clean[ticket], targets, ticket, perturbed.get(ticket))
            self._sent[ticket] = sent

    def update(self, step: int) -> None:
        """Let all blocks learn from the errors of a step."""
        sent = {ticket: self._sent.pop(ticket) for ticket in sorted(self._sent) if ticket.step == step}
        for block in (block for block in self._blocks if block.learns):
            for ticket, broadcast in sent.items():
                with self._timing(block, "update", ticket):
                    block.receive_error(ticket, broadcast.error, projection=broadcast.projection)
                    if broadcast.response is not None:
                        block.receive_error(ticket, broadcast.response, "probe")
        for stage in (*self._blocks, self._head):
            with self._timing(stage, "step", Ticket(step, 0)):
                stage.step()

    def times(self, microbatches: int) -> list[StageTime]:
        """Return the medians, those of probed and other micro-batches in the proportion of a whole run."""
        parts: dict[Piece, int] = {"forward": microbatches, "update": microbatches, "step": 1}
        return [
            StageTime(*(self._median(stage.index, piece, number) for piece, number in parts.items()))
            for stage in (*self._blocks, self._head)
        ]

    def _median(self, index: int, piece: Piece, per_step: int) -> float:
        plain, probed = (self.taken.get((index, piece, probe), []) for probe in (False, True))
        if not plain or not probed:
            return median([*plain, *probed] or [0.0])
        share = 1 / (self._feedback.probe_interval * per_step)
        return (1 - share) * median(plain) + share * median(probed)

    @contextmanager
    def _timing(self, stage: Stage, piece: Piece, ticket: Ticket) -> Iterator[None]:
        _wait_for(stage.device)
        began = time.perf_counter()
        yield
        _wait_for(stage.device)
        self.taken[stage.index, piece, self._feedback.probes(ticket)].append(time.perf_counter() - began)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
