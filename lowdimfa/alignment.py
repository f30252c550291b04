"""How well each block's own update agrees with the true gradient: measured on request, by a reference backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.block_module import unchanged_buffers
from lowdimfa.generators import unchanged_generators
from lowdimfa.head import Head
from lowdimfa.sending import straight_through
from lowdimfa.sites import delivered, follow, tap_all
from lowdimfa.tickets import Ticket
from lowdimfa.values import Activation, Value, mapped, one, onward, opened


@dataclass(frozen=True)
class BlockAlignment:
    """One block's update direction against its true gradient, both of the same batch at the same weights.

    Attributes
    ----------
    block
        Its index.
    cosine, angle_degrees
        Between the two, over all parameters of the block.
    update_norm, gradient_norm
        Euclidean norms of the block's own gradient and of the true one.
    """

    block: int
    cosine: float
    angle_degrees: float
    update_norm: float
    gradient_norm: float


@dataclass(frozen=True)
class Alignment:
    """Alignment of all blocks that learn from broadcast errors, and what the projection keeps of the output's."""

    blocks: list[BlockAlignment]
    explained_error_energy: float

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the machine-readable ``alignment`` event."""
        return asdict(self)


def measure_alignment(blocks: Sequence[Block], head: Head, inputs: Activation, targets: Tensor) -> Alignment:
    """Compare every block's update with the gradient that backpropagation gives it.

    Nothing is changed: not the weights, their accumulated gradients, running statistics, or what a block keeps.

    Parameters
    ----------
    blocks, head
        The network, all in this process.
    inputs, targets
        One batch.
    """
    ticket = Ticket(0, 0)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(unchanged_generators(head.device))
        for stage in (*blocks, head):
            stack.enter_context(unchanged_buffers(stage.module))
        error, true_gradients = _reference(blocks, head, inputs, targets, ticket)
        sent = head.projected(error)
        found = []
        for block, truth in zip(blocks, true_gradients, strict=True):
            outputs = block.run_parts(inputs.detach(), ticket)
            follow(block.sites, head.projection.weights)  # as with the next error
            if block.learns:
                found.append(_compare(block.index, _update(block, outputs, sent), truth))
            inputs = _arrived(block, onward(inputs, outputs[-1]))
    return Alignment(found, head.projection.explained_energy(error))


def _update(block: Block, outputs: Sequence[Value], sent: Tensor) -> Sequence[Tensor]:
    """Return the gradients that a block makes of a broadcast error, given the outputs of its parts."""
    parameters = [value for value in block.module.parameters() if value.requires_grad]
    tapped = tap_all(block.sites, outputs)
    pairs = zip(tapped, delivered(block.sites, tapped, sent), strict=True)
    learning = [(value, fed) for value, fed in pairs if value.requires_grad]
    return torch.autograd.grad(
        [value for value, _ in learning], parameters, [fed for _, fed in learning], materialize_grads=True
    )


def _reference(
    blocks: Sequence[Block], head: Head, inputs: Activation, targets: Tensor, ticket: Ticket
) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """Return the error that is broadcast and every block's true gradient."""
    for stage in blocks:
        inputs = _arrived(stage, stage.run(inputs, ticket))
    entering: list[Value] = []
    outputs = one(head.run_parts(inputs, ticket, cut=partial(_noted, entering))[-1])
    error = head.last_error(outputs, targets)
    source = head.source_error(entering, outputs, error)
    groups = [[value for value in block.module.parameters() if value.requires_grad] for block in blocks]
    flat = [value for group in groups for value in group]
    if not flat:
        return source, [[] for _ in blocks]
    gradients = iter(torch.autograd.grad(outputs, flat, error.to(outputs.dtype), materialize_grads=True))
    return source, [[next(gradients) for _ in group] for group in groups]


def _arrived(block: Block, output: Activation) -> Activation:
    """Return what the layers of the next block take, in which the format of activations has left its traces."""
    return onward(output, straight_through(block.form, block.ports, opened(output)[0]))


def _noted(entering: list[Value], value: Value) -> Value:
    entering.append(mapped(value, _leaf))
    return entering[-1]


def _leaf(value: Tensor) -> Tensor:
    wanting = value.is_floating_point() and not value.requires_grad
    return value.detach().requires_grad_() if wanting else value


def _compare(index: int, update: Sequence[Tensor], truth: Sequence[Tensor]) -> BlockAlignment:
    ours, true = (torch.cat([_dense(value).flatten().float() for value in each]) for each in (update, truth))
    norms = float(ours.norm()), float(true.norm())
    cosine = float(ours @ true) / max(norms[0] * norms[1], torch.finfo(torch.float32).tiny)
    # Rounding may take it past 1; in this order what is no number stays none.
    cosine = max(min(cosine, 1.0), -1.0)
    return BlockAlignment(index, cosine, math.degrees(math.acos(cosine)), *norms)


def _dense(value: Tensor) -> Tensor:
    return value.to_dense() if value.is_sparse else value
