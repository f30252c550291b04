"""The baselines, on the very same blocks and optimisers: backpropagation, greedy local losses, and blocks that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.feedback.readout import LocalReadout
from lowdimfa.head import Head
from lowdimfa.set_taps import tap_at
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, one, opened


class BackpropForm:
    """Exact gradients end to end: what the blocks would learn as one network."""

    def __init__(self, blocks: Sequence[Block], head: Head) -> None:
        self._stages = [*blocks, head]
        self._head = head

    def run(
        self, inputs: Activation, targets: Tensor, ticket: Ticket, weight: float | None = None
    ) -> tuple[float, int, int]:
        """Forward through all blocks with one graph, and backpropagate the output error."""
        with torch.enable_grad():
            for stage in self._stages:
                inputs = stage.run(inputs, ticket)
            outputs = one(inputs)
        if self._head.chunk is None:
            loss, error = self._head.output_error(outputs, targets, weight)
            correct, counted = self._head.objective.score(outputs, targets)
        else:
            loss, error, correct, counted = self._head.learn_by_chunks(outputs, targets, weight)
        self._head.require_finite(loss, "the loss", ticket.step)
        torch.autograd.backward(outputs, error.to(outputs.dtype))
        return float(loss), int(correct), int(counted)

    def step(self) -> None:
        """Let each block's optimiser apply its part of the gradient."""
        for stage in self._stages:
            stage.update()


class LocalForm:
    """Greedy local learning: each block has a linear readout of its own and needs no error from the output.

    As Nøkland and Eidnes (2019) and Belilovsky et al. (2020), reading from the block's tap.
    """

    def __init__(self, blocks: Sequence[Block], head: Head) -> None:
        self._blocks = blocks
        self._head = head

    def run(
        self, inputs: Activation, targets: Tensor, ticket: Ticket, weight: float | None = None
    ) -> tuple[float, int, int]:
        """Run each block on the detached output of the one before, and learn from the readout's loss."""
        for block in self._blocks:
            with block.learning():
                output = block.run(inputs.detach(), ticket)
                if block.learns:
                    _, tap, feedback = block.sites[-1]
                    prediction = cast(LocalReadout, feedback).predict(tap_at(tap, opened(output)[0]))
            if block.learns:
                _, error = self._head.output_error(prediction, targets, weight)
                torch.autograd.backward(prediction, error)
            inputs = output.detach()
        sent = self._head.forward(inputs, targets, ticket, weight=weight)
        return float(sent.loss), int(sent.correct), int(sent.counted)

    def step(self) -> None:
        """Apply each block's own gradients."""
        for stage in (*self._blocks, self._head):
            stage.update()


class FrozenForm:
    """The control: the head alone learns, and the blocks before it stay as drawn.

    What a rule gains over this is what its feedback is worth; a head on random features does well in short runs. Running
    statistics, such as those of batch norm, follow the data: they are no weights, and evaluation needs them.
    """

    def __init__(self, blocks: Sequence[Block], head: Head) -> None:
        self._blocks = blocks
        self._head = head

    def run(
        self, inputs: Activation, targets: Tensor, ticket: Ticket, weight: float | None = None
    ) -> tuple[float, int, int]:
        """Forward through all blocks, and let the head learn."""
        with torch.no_grad():
            for block in self._blocks:
                inputs = block.run(inputs, ticket)
        sent = self._head.forward(inputs, targets, ticket, weight=weight)
        return float(sent.loss), int(sent.correct), int(sent.counted)

    def step(self) -> None:
        """Let the head's optimiser apply its gradient."""
        self._head.update()
