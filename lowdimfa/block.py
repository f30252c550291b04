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
from lowdimfa.errors import InputError, ProtocolError
from lowdimfa.optim import Updater
from lowdimfa.sending import leaving
from lowdimfa.sites import FeedbackSite, deliver, follow, tap_all
from lowdimfa.stage import Stage
from lowdimfa.stage_config import StageConfig
from lowdimfa.stash import StashedWeights
from lowdimfa.tickets import Ticket
from lowdimfa.values import ONE, PLAIN, Activation, Ports, Value, mapped, named, onward, opened, types_of

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
        ports: Ports = PLAIN,
    ) -> None:
        super().__init__(index, module, updater, sites, config, parts, ports)
        self._kept: dict[Ticket, _Kept] = {}
        # Of one tensor that isn't packed the next block takes any shape.
        self._is_planned = self.form is not None or ONE not in (ports.leaves or (ONE,))

    @property
    def learns(self) -> bool:
        """Whether the block has anything to learn: one that has not is sent no errors, and keeps nothing for them."""
        return bool(self.sites)

    def leaving_type(self, name: str) -> torch.dtype:
        """Return that of the plan, which the next block expects."""
        planned = self.ports.leaves.get(name)
        return planned.dtype if planned is not None and planned.dtype.is_floating_point else torch.float32

    def forward(self, inputs: Activation, ticket: Ticket) -> Activation:
        """Run the layers, keep under the ticket what the update needs, and return the detached output.

        Raises
        ------
        NotFiniteError
            The output isn't finite.
        InputError
            A named set has others members, or of another type, than it had when the network was cut.
        """
        with self.learning() as weights:
            outputs = self.run_parts(inputs.detach(), ticket)
            if self._is_planned or not isinstance(outputs[-1], Tensor):
                self._refuse_changed(outputs[-1])
            if self.learns:
                self._kept[ticket] = _Kept(tap_all(self.sites, outputs), weights)
        detached = mapped(outputs[-1], lambda output: output.detach().contiguous())
        for name in self.ports.tapped:
            self.check_finite(named(detached)[name], f"the output{name and f' {name!r}'}", ticket.step)
        return onward(inputs, self._leaving(detached))

    def probe(self, inputs: Activation, ticket: Ticket) -> Activation:
        """Run the layers once more on perturbed inputs, and add this block's own noise: see `run_perturbed`.

        A block that has nothing to learn adds none.
        """
        output, moved = self.run_perturbed(inputs, ticket)
        if self.learns:
            self._kept[ticket].moved = moved
        return onward(inputs, self._leaving(mapped(output, Tensor.contiguous)))

    def evaluate(self, inputs: Activation, batch: int = 0) -> Activation:
        """Run the layers in evaluation mode on a batch of that number; nothing is kept and nothing changes."""
        output, _ = opened(super().evaluate(inputs, batch))
        if self._is_planned or not isinstance(output, Tensor):
            self._refuse_changed(output)
        return onward(inputs, self._leaving(output))

    def _leaving(self, output: Value) -> Value:
        return output if self.form is None else leaving(self.form, self.ports.tapped, output)

    def _refuse_changed(self, output: Value) -> None:
        """Refuse another set than the one that the next block expects."""
        found = types_of(output, leading=1)
        for name in {**self.ports.leaves, **found}:
            kinds = self.ports.leaves.get(name), found.get(name)
            if kinds[0] != kinds[1]:
                where = f"{repr(name) if name else 'the output'} of block {self.index} ({self.boundary})"
                raise InputError(
                    "model.factory",
                    f"{kinds[1] or 'nothing'} as {where}",
                    f"{kinds[0] or 'nothing'}, as when the network was cut",
                    "What goes from block to block keeps its names, shapes and types.",
                )

    def receive_error(
        self, ticket: Ticket, error: Tensor, kind: ErrorKind = "train", projection: Tensor | None = None
    ) -> None:
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
        projection
            ``P`` of this error, shape ``(error_dim, width)``, where it has changed and the feedback weights follow it.

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
            if projection is not None:
                follow(self.sites, projection)
            with StashedWeights.in_place(kept.weights):
                deliver(self.sites, kept.tapped, error)
            kept.tapped = kept.weights = None
        if kept.tapped is None and kept.moved is None:
            del self._kept[ticket]

    def forget(self) -> None:
        """Drop what micro-batches have accumulated and kept since the last step."""
        self._kept.clear()
        super().forget()
