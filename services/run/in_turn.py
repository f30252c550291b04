"""The first step of a large network on copies, one piece of a block after the other, with memory for one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lowdimfa.block import Block
from lowdimfa.block_module import BlockModule, unchanged_buffers
from lowdimfa.errors import InputError, NotFiniteError, in_words
from lowdimfa.feedback.making import ErrorShape
from lowdimfa.feedback.resolving import error_shape
from lowdimfa.head import Broadcast, Head
from lowdimfa.muon import Muon, refuse_unused
from lowdimfa.partitioning import BlockPlan
from lowdimfa.services.run.large import Make, build_some
from lowdimfa.services.run.profile import Bench
from lowdimfa.services.run.rehearsal import (
    CHECKS,
    FIRST_STEP,
    SAMPLES,
    Rehearsal,
    copies_of,
    schedules_last,
    when_few,
)
from lowdimfa.services.spec import Specification
from lowdimfa.sparse import Outline
from lowdimfa.stage import Stage
from lowdimfa.tickets import Ticket, derive_seed
from lowdimfa.values import (
    Activation,
    Types,
    everywhere,
    named,
    onward,
    opened,
    put_together,
    with_side,
)

PIECE = 32 << 20
"""Bytes of parameters of a piece that is rehearsed at a time, where layers are no larger."""


def rehearse_in_turn(
    specification: Specification,
    blocks: Sequence[BlockPlan],
    bench: Bench,
    outline: Outline,
    make: Make,
    smallest: int = SAMPLES,
) -> dict[str, list[str]]:
    """Do as `lowdimfa.services.run.rehearsal.rehearse`, with as little memory as can be.

    What arrives at a piece comes from made-up weights; its own are as in the run, and so is the error where the head has
    made it. Within a block a piece ends where errors can be delivered as at the block's end.

    Raises
    ------
    InputError
        As there.
    """
    parts = [piece for block in blocks for piece in pieces(block, block is blocks[-1])]
    shape, size = error_shape(blocks, bench.feedback), min(SAMPLES, len(bench.batches[0][1]))
    with bench.computing(derive_seed(specification.train.seed, "rehearsal")):
        if smallest < size:
            few = bench.with_samples(smallest)
            turns = _Turns(specification, few, make, outline, shape, when_few(smallest), checks=())
            with suppress(NotFiniteError, MemoryError):
                turns.run(parts)
        turns = _Turns(specification, bench.with_samples(size), make, outline, shape)
        with suppress(NotFiniteError, MemoryError):
            turns.run(parts)
    return turns.counts


def pieces(block: BlockPlan, is_head: bool) -> list[BlockPlan]:
    """Return a block in pieces that can be rehearsed as blocks of their own, of `PIECE` bytes where that can be."""
    like = _shapes(block.inputs if is_head else block.outputs)
    starts, held = [0], 0
    for index, layer in enumerate(block.layers):
        nbytes = sum(parameter.nbytes for parameter in layer.module.parameters())
        begins = index in block.starts[1:] and _shapes(block.flows[index - 1].outputs) == like
        if begins and held + nbytes > PIECE:
            starts, held = [*starts, index], 0
        held += nbytes
    return block.parts(starts)


def _shapes(types: Types) -> dict[str, tuple[int, ...]]:
    return {name: kind.shape for name, kind in types.items()}


@dataclass
class _Turns:
    specification: Specification
    bench: Bench
    make: Make
    outline: Outline
    shape: ErrorShape
    when: str = FIRST_STEP
    checks: Sequence[Callable[[Rehearsal], None]] = field(default_factory=lambda: CHECKS)
    counts: dict[str, list[str]] = field(default_factory=dict)

    def run(self, parts: list[BlockPlan]) -> None:
        """Rehearse all pieces of a network, the last first."""
        arriving = self._arriving(parts)
        sent: list[Broadcast] = []
        followed: set[int] = set()
        uses_muon = False
        for part, inputs in reversed(list(zip(parts, arriving, strict=True))):
            rehearsal = self._begun(part, inputs, is_head=part is parts[-1])
            (stage,) = rehearsal.stages
            if not rehearsal.step(partial(self._step, stage, inputs, sent), self.when):
                return
            self.counts |= rehearsal.counts
            known, uses_muon = id(stage.updater.config) in followed, uses_muon or _is_muon(stage)
            followed.add(id(stage.updater.config))
            for check in self.checks:
                if not (known and check is schedules_last):
                    check(rehearsal)
            del rehearsal, stage
        if uses_muon:
            begun = (self._begun(part, [], is_head=part is parts[-1]).stages[0] for part in parts)
            refuse_unused(stage.updater for stage in begun)

    def _begun(self, part: BlockPlan, inputs: Sequence[Activation], is_head: bool) -> Rehearsal:
        """Build a piece, as it is before the first step."""

        def rebuild() -> list[BlockPlan]:
            return [build_some(self.make, self.outline, part)]

        plans = rebuild()
        (copied,) = copies_of(plans, slice(None), rebuild)
        batches = list(zip(inputs, (targets for _, targets in self.bench.batches), strict=False))
        bench = replace(self.bench, batches=batches)
        return Rehearsal(
            self.specification,
            plans,
            bench,
            [bench.build_one(copied, self.shape, is_head)],
            rebuild,
            self.shape,
        )

    def _arriving(self, parts: Sequence[BlockPlan]) -> list[list[Activation]]:
        """Return what reaches each piece in the first micro-batches, of made-up weights."""
        values, found = [inputs.to(torch.device("cpu")) for inputs, _ in self.bench.batches], []
        with self.outline.running().active(), torch.no_grad():
            for part in parts:
                values = [_typed(value, part.inputs) for value in values]
                found.append([value.to(self.bench.device) for value in values])
                module = part.build().train()
                try:
                    with unchanged_buffers(module):
                        values = [_run(module, value) for value in values]
                except (Exception, SystemExit) as error:  # a user's layers may fail in any way
                    raise InputError(
                        "model.factory",
                        f"layers {part.name!r} to {part.layers[-1].name!r} failing {self.when} ({in_words(error)})",
                        "what trains in plain PyTorch",
                    ) from error
        return found

    def _step(self, stage: Stage, inputs: Sequence[Activation], sent: list[Broadcast]) -> None:
        """Make one step of a piece; the head notes what it sends."""
        tickets = [Ticket(0, number) for number in range(len(inputs))]
        if isinstance(stage, Head):
            targets = [targets for _, targets in self.bench.batches]
            for x, y, ticket, weight in zip(
                inputs, targets, tickets, stage.objective.weights(targets), strict=True
            ):
                probed = x if self.bench.feedback.probes(ticket) else None
                sent.append(stage.forward(x, y, ticket, probed, weight))
        elif isinstance(stage, Block):
            for x, ticket, broadcast in zip(inputs, tickets, sent, strict=True):
                stage.forward(x, ticket)
                if self.bench.feedback.probes(ticket):
                    stage.probe(x, ticket)
                if not stage.learns:
                    continue
                stage.receive_error(ticket, broadcast.error, projection=broadcast.projection)
                if broadcast.response is not None:
                    stage.receive_error(ticket, broadcast.response, "probe")
        stage.step()


def _typed(activation: Activation, types: Types) -> Activation:
    """Return what arrives, of the types of the plan."""
    stream, side = opened(activation)
    typed = [
        tensor.to(types[name].dtype) if name in types else tensor for name, tensor in named(stream).items()
    ]
    return with_side(put_together(list(named(stream)), typed), side)


def _run(module: BlockModule, activation: Activation) -> Activation:
    stream, side = opened(everywhere(activation, Tensor.clone))
    return onward(activation, module(stream, side))


def _is_muon(stage: Stage) -> bool:
    return isinstance(stage.updater.optimizer, Muon)
