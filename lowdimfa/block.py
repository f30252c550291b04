"""A block: some layers of a network with their own feedback weights and optimiser.

A block never sees another block's gradient. It gets activations from the block before it, and the broadcast error;
from these alone it makes its own update. The same object runs in the in-process trainer and in a distributed runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdimfa.errors import NotFiniteError, ProtocolError
from lowdimfa.feedback.rules import FeedbackWeights
from lowdimfa.optim import Updater
from lowdimfa.partition import BlockModule
from lowdimfa.stash import keep_saved_weights
from lowdimfa.taps import Tap
from lowdimfa.tickets import Ticket, derive_seed

ErrorKind = Literal["train", "probe"]


class Stage:
    """What blocks and the head share: layers, their random numbers, precision, and what is kept of them.

    Parameters
    ----------
    index
        Position of the block in the network, for messages and seeds.
    module
        The layers.
    updater
        Optimiser, scheduler and clipping.
    seed
        The run's seed.
    precision
        ``fp32``, or ``bf16`` for autocast.
    staleness
        Above 0, weights may change between a forward and its update, so the forward keeps those it used.
    """

    def __init__(
        self, index: int, module: BlockModule, updater: Updater, *, seed: int, precision: str, staleness: int
    ) -> None:
        self.index = index
        self.module = module
        self.updater = updater
        self.device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
        self.seed = seed
        self._autocast = precision == "bf16"
        self._staleness = staleness

    def run(self, inputs: Tensor, ticket: Ticket) -> Tensor:
        """Run the layers on a micro-batch in training mode, with random numbers that depend on the ticket alone."""
        self.module.train()
        seed_generators(derive_seed(self.seed, "forward", self.index, *ticket), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            if self._staleness and torch.is_grad_enabled():
                with keep_saved_weights(self.module):
                    output = self.module(inputs)
            else:
                output = self.module(inputs)
        return self._full_precision(output)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor) -> Tensor:
        """Run the layers in evaluation mode; nothing is kept and nothing changes."""
        self.module.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            output = self.module(inputs)
        return self._full_precision(output).contiguous()

    def _full_precision(self, output: Tensor) -> Tensor:
        """Undo autocast at the block's end: what leaves has the type that the plan announced, whatever layer is last."""
        return output.float() if self._autocast else output

    def step(self) -> None:
        """Apply the accumulated gradients to the layers."""
        self.updater.step()

    @property
    def boundary(self) -> str:
        """Name of the last layer, under which the state of the block's end is kept."""
        return self.module.layer_names[-1]

    def require_finite(self, values: Tensor, what: str, step: int) -> None:
        """Raise if a sum over the values isn't finite.

        Raises
        ------
        NotFiniteError
            Names the block and the step.
        """
        if not torch.isfinite(values.sum(dtype=torch.float32)):
            raise NotFiniteError(
                f"{what} of block {self.index} ({self.boundary}) is not finite at step {step}; "
                "lower the learning rate (train.optimizer.args.lr) or set train.grad_clip",
                block=self.index,
                step=step,
                setting="train.optimizer.args.lr",
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors, keyed by the plain model's names."""
        model = {f"model/{name}": value for name, value in self.module.plain_state_dict().items()}
        return model | {f"optimizer/{name}": value for name, value in self.updater.tensors().items()}

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state as plain data."""
        return {"updater": self.updater.scalars()}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Restore what `tensors` and `scalars` returned."""
        self.module.load_plain_state_dict(_under(tensors, "model/"))
        self.updater.load(_under(tensors, "optimizer/"), scalars["updater"])


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
        probe_noise: float = 0.05,
    ) -> None:
        super().__init__(index, module, updater, seed=seed, precision=precision, staleness=staleness)
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
        with torch.enable_grad():
            output = self.run(inputs.detach(), ticket)
            self._kept[ticket] = _Kept(self.tap(output))
        detached = output.detach().contiguous()
        self.require_finite(detached, "the output", ticket.step)
        return detached

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
        return perturbed.contiguous()

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
            if kept.tapped.requires_grad:
                torch.autograd.backward(kept.tapped, self.feedback.deliver(error))
            self.feedback.accumulate(kept.tapped.detach(), error)
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


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generators that layers such as dropout draw from, of the CPU and of the block's GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Let a forward write to copies of a module's buffers, such as batch norm's running statistics.

    The buffers themselves aren't touched: a graph that is kept for a later backward may refer to them.
    """
    originals = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    for part, name, buffer in originals:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in originals:
            setattr(part, name, buffer)
