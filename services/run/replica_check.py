"""Replicas of a block must begin alike and stay alike: they share gradients and buffers, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowdimfa.encoding import same, same_bits
from lowdimfa.errors import InputError
from lowdimfa.moving import Moved, moved_in_training, training_forwards
from lowdimfa.partitioning import BlockPlan
from lowdimfa.rule_check import refuse_drifting
from lowdimfa.stage import Stage
from lowdimfa.values import Activation

if TYPE_CHECKING:  # which has this among its checks
    from lowdimfa.services.run.rehearsal import Rehearsal


_APART = ": replicas add up gradients, and would go apart"
_WHEN = "in a forward in training"

_MOVED = {
    "parameters": ("changes its parameter {} in its forward", _APART),
    "made": (
        "makes its buffer {} of what it sees, gives it another shape, or drops it, while it trains",
        ", or a buffer that is there from the start: replicas average their buffers",
    ),
    "uneven": (
        "moves its buffer {} of whole numbers by what it sees",
        ", or a buffer of floats, which replicas average: of others all get those of the first",
    ),
    "attributes": (
        "keeps in its attribute {} more than of its last forward in training",
        ", or a buffer: of an attribute each replica has its own",
    ),
}
"""What is refused of what `lowdimfa.moving.Moved` has, and what there may be instead."""


def replicas_are_alike(rehearsal: Rehearsal) -> None:
    """Refuse replicas of a block that would not begin, or not stay, the same."""
    replicas = rehearsal.specification.replicas
    last = max((at for at, plan in enumerate(rehearsal.blocks) if replicas[plan.index] > 1), default=-1)
    if last < 0:
        return
    reaching = [inputs for inputs, _ in rehearsal.bench.batches]
    for index, (plan, again) in enumerate(zip(rehearsal.blocks, rehearsal.rebuild(), strict=True)):
        number, stage = replicas[plan.index], rehearsal.stages[index]
        if number > 1:
            if stage.updater.sparse:
                raise _refusal(
                    plan,
                    number,
                    "whose layers make sparse gradients",
                    ", or layers with sparse=False: replicas send each other dense gradients",
                )
            _refuse_chance(plan, again, number)
            refuse_drifting(rehearsal.untrained(index), rehearsal.untrained(index), number)
            _refuse_moving(plan, number)
            _refuse_changing(plan, stage, rehearsal.untrained(index), number)
            _refuse_moving_in_training(rehearsal, index, reaching, number)
        if index < last and not (reaching := _onward(rehearsal, index, reaching)):
            return


def _refuse_chance(plan: BlockPlan, again: BlockPlan, replicas: int) -> None:
    ours, theirs = plan.build().plain_state(), again.build().plain_state()
    if not same(ours._asdict(), theirs._asdict()):
        raise InputError(
            "model.factory",
            f"a factory that makes another block {plan.index} each time, with placement.replicas {replicas}",
            "the same weights in every process",
            "torch's, NumPy's and Python's own random numbers are seeded; another source has to be.",
        )


def _refuse_moving(plan: BlockPlan, replicas: int) -> None:
    """Refuse layers that change their learned parameters by what they see: replicas see other samples each."""
    for layer, flow in zip(plan.layers, plan.flows, strict=True):
        learned = {name for name, value in layer.module.named_parameters() if value.requires_grad}
        if moved := [name for name in flow.moves if name in learned]:
            raise _refusal(
                plan,
                replicas,
                f"whose layer {layer.name!r} changes its parameter {moved[0]!r} in its forward",
                _APART,
            )


def _refuse_moving_in_training(
    rehearsal: Rehearsal, index: int, reaching: Sequence[Activation], replicas: int
) -> None:
    """Refuse layers that in training change what replicas don't share, or share otherwise than one of them would."""
    seen: list[Moved] = []
    one, other, plan = rehearsal.untrained(index), rehearsal.untrained(index), rehearsal.blocks[index]
    if not rehearsal.step(lambda: seen.append(moved_in_training(one, other, reaching)), _WHEN):
        return
    for kind, names in seen[0]._asdict().items():
        what, instead = _MOVED[kind]
        for layer, name in names:
            raise _refusal(plan, replicas, f"whose layer {layer!r} {what.format(repr(name))}", instead)


def _onward(rehearsal: Rehearsal, index: int, reaching: Sequence[Activation]) -> list[Activation]:
    """Return what reaches the next block, or nothing where it is for the run itself to meet what comes of it."""
    found: list[Activation] = []
    stage = rehearsal.untrained(index)
    rehearsal.step(lambda: found.extend(training_forwards(stage, reaching)), _WHEN)
    return found


def _refuse_changing(plan: BlockPlan, trained: Stage, untrained: Stage, replicas: int) -> None:
    """Refuse what else a step has changed: frozen parameters, extra state."""
    frozen = dict(untrained.module.named_parameters())
    for name, value in trained.module.named_parameters():
        if not value.requires_grad and not same_bits(value, frozen[name]):
            raise _refusal(
                plan,
                replicas,
                f"whose forward changes the frozen parameter {name}",
                ", or a buffer, which is averaged between replicas",
            )
    before, after = plan.build().plain_state().extra, trained.module.plain_state().extra
    if changed := [name for name, value in after.items() if not same(value, before[name])]:
        raise _refusal(
            plan,
            replicas,
            f"which changes {changed[0]} while it trains",
            ", since extra state is not averaged between replicas",
        )


def _refusal(plan: BlockPlan, replicas: int, what: str, instead: str) -> InputError:
    return InputError(
        "placement.replicas", f"{replicas} of block {plan.index}, {what}", f"1 for this block{instead}"
    )
