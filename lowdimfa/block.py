"""A block: some layers of a network with their own feedback weights and optimiser.

A block never sees another block's gradient. It gets activations from the block before it, and the broadcast error;
from these alone it makes its own update. The same object runs in the in-process trainer and in a distributed runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.feedback.rules import FeedbackWeights
from lowdimfa.optim import Updater
from lowdimfa.partition import BlockModule
from lowdimfa.stage import Stage, unchanged_buffers
from lowdimfa.taps import Tap
from lowdimfa.tickets import Ticket, derive_seed

ErrorKind = Literal["train", "probe"]


@dataclass
class _Kept:
    """What the update of one micro-batch needs: the tap with its graph, and the tap's noise on a probe."""

    tapped: Tensor | None
    moved: Tensor | None = None


class Block(Stage):
    """A block that learns from the broadcast error (arXiv:2502.20580, the direct form ``δ = Q P e``).

    Parameters
    ----------
    tap
        Where the error enters the block.
    feedback
        Its feedback weights and their rule.
    activations
        Format of what leaves for the next block: ``fp32``, or ``bf16``.
    probe_noise
        Standard deviation of a probe's noise, relative to that of the block's output.
    """

    def __init__(
        self,
        index: int,
        module: BlockModule,
        updater: Updater,
        tap: Tap,
        feedback: FeedbackWeights,
        *,
        seed: int,
        precision: str = "fp32",
        staleness: int = 0,
        compiled: bool = False,
        activations: str = "fp32",
        probe_noise: float = 0.05,
    ) -> None:
        super().__init__(
            index,
            module,
            updater,
            seed=seed,
            precision=precision,
            staleness=staleness,
            compiled=compiled,
        )
        self._travels_as = torch.bfloat16 if activations == "bf16" else torch.float32
        self.tap = tap
        self.feedback = feedback
        self._probe_noise = probe_noise
        self._kept: dict[Ticket, _Kept] = {}

    def forward(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers, keep under the ticket what the update needs, and return the detached output.

        Raises
        ------
        NotFiniteError
            The output isn't finite.
        """
        with self.learning():
            output = self.run(inputs.detach(), ticket)
            self._kept[ticket] = _Kept(self.tap(output))
        detached = output.detach().contiguous()
        self.check_finite(detached, "the output", ticket.step)
        return self._leaving(detached)

    @torch.no_grad()
    def probe(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers once more on perturbed inputs, and add this block's own noise to the output.

        Dropout draws as in the clean pass, and running statistics stay as the clean pass left them.
        """
        with unchanged_buffers(self.module):
            output = self.run(inputs, ticket)
        seed = derive_seed(self.seed, "probe", self.index, *ticket)
        generator = torch.Generator(output.device).manual_seed(seed)
        perturbed, self._kept[ticket].moved = self.tap.perturb(output, self._probe_noise, generator)
        return self._leaving(perturbed.contiguous())

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Run the layers in evaluation mode; nothing is kept and nothing changes."""
        return self._leaving(super().evaluate(inputs))

    def _leaving(self, output: Tensor) -> Tensor:
        return output.to(self._travels_as) if output.dtype == torch.float32 else output

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
            self.feedback.accumulate_probe(kept.moved, error)
            kept.moved = None
        elif kind == "train" and kept.tapped is not None:
            delivered = self.feedback.respond(kept.tapped.detach(), error)
            if kept.tapped.requires_grad:
                torch.autograd.backward(kept.tapped, delivered)
            kept.tapped = None
        if kept.tapped is None and kept.moved is None:
            del self._kept[ticket]

    def step(self) -> None:
        """Apply the accumulated gradients to the layers and the feedback weights."""
        self.feedback.step()
        super().step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors, keyed by the plain model's names."""
        return super().tensors() | {f"feedback/{self.boundary}/Q": self.feedback.weights.detach()}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Restore the state; feedback weights of a boundary that is new stay as they were drawn."""
        super().load(tensors, scalars)
        saved = tensors.get(f"feedback/{self.boundary}/Q")
        if saved is not None:
            self.feedback.weights.data.copy_(saved)
