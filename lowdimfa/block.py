"""A block: some layers of a network with their own feedback weights and optimiser.

A block never sees another block's gradient. It gets activations from the block before it, and the broadcast error;
from these alone it makes its own update. The same object runs in the in-process trainer and in a distributed runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowdimfa.block_module import BlockModule
from lowdimfa.config import StageConfig
from lowdimfa.errors import ProtocolError
from lowdimfa.optim import Updater
from lowdimfa.sites import FeedbackSite, deliver, tap_all
from lowdimfa.stage import Stage
from lowdimfa.stash import StashedWeights
from lowdimfa.tickets import Ticket

ErrorKind = Literal["train", "probe"]


@dataclass
class _Kept:
    """What the update of one micro-batch needs: each part's tap with its graph, the weights, the noise of a probe."""

    tapped: list[Tensor] | None
    weights: StashedWeights | None
    moved: list[Tensor] | None = None


class Block(Stage):
    """A block that learns from the broadcast error (arXiv:2502.20580, the direct form ``δ = Q P e``)."""

    def __init__(
        self,
        index: int,
        module: BlockModule,
        updater: Updater,
        sites: Sequence[FeedbackSite],
        config: StageConfig,
        parts: Sequence[int] = (0,),
    ) -> None:
        super().__init__(index, module, updater, sites, config, parts)
        self._kept: dict[Ticket, _Kept] = {}

    @property
    def learns(self) -> bool:
        """Whether the block has anything to learn: one that has not is sent no errors, and keeps nothing for them."""
        return bool(self.sites)

    def forward(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers, keep under the ticket what the update needs, and return the detached output.

        Raises
        ------
        NotFiniteError
            The output isn't finite.
        """
        with self.learning() as weights:
            outputs = self.run_parts(inputs.detach(), ticket)
            if self.learns:
                self._kept[ticket] = _Kept(tap_all(self.sites, outputs), weights)
        detached = outputs[-1].detach().contiguous()
        self.check_finite(detached, "the output", ticket.step)
        return self._leaving(detached)

    def probe(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers once more on perturbed inputs, and add this block's own noise: see `run_perturbed`.

        A block that has nothing to learn adds none.
        """
        output, moved = self.run_perturbed(inputs, ticket)
        if self.learns:
            self._kept[ticket].moved = moved
        return self._leaving(output.contiguous())

    def evaluate(self, inputs: Tensor, batch: int = 0) -> Tensor:
        """Run the layers in evaluation mode on a batch of that number; nothing is kept and nothing changes."""
        return self._leaving(super().evaluate(inputs, batch))

    def _leaving(self, output: Tensor) -> Tensor:
        return output.bfloat16() if self._coarse_between and output.dtype == torch.float32 else output

    def receive_error(self, ticket: Ticket, error: Tensor, kind: ErrorKind = "train") -> None:
        """Accumulate this block's local gradients from the broadcast error of one micro-batch.

        A probe's response comes after the same micro-batch's training error, or before it.

        Parameters
        ----------
        ticket
            The micro-batch.
        error
            ``c``, shape ``(batch, *positions, error_dim)``.
        kind
            ``train`` for an error, ``probe`` for the projected response to a probe.

        Raises
        ------
        ProtocolError
            No forward is kept under the ticket.
        """
        kept = self._kept.get(ticket)
        if kept is None:
            raise ProtocolError(
                f"block {self.index} got an error for {ticket}, which it has not forwarded",
                block=self.index,
                step=ticket.step,
            )
        if kind == "probe" and kept.moved is not None:
            self.accumulate_probe(kept.moved, error, ticket)
            kept.moved = None
        elif kind == "train" and kept.tapped is not None:
            self._learned = ticket
            self.seed_for("update", *ticket)
            with StashedWeights.in_place(kept.weights):
                deliver(self.sites, kept.tapped, error)
            kept.tapped = kept.weights = None
        if kept.tapped is None and kept.moved is None:
            del self._kept[ticket]
