"""One step's gradients added up among the replicas of a block, without I/O: what each sends, and what it makes of it.

Each replica owns one shard of all that is to be added up. It gets the other replicas' parts of that shard, adds them up
in the order of their ranks, and gives every replica the sum: so all get the same bits, and each sends and receives
twice the size of the gradients in all, however many replicas there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lowdimfa.errors import ProtocolError
from lowdimfa.pending import pending_sums, running_statistics
from lowdimfa.stage import Stage
from lowdimfa.unchanged import overwrite

Reduction = Literal["sum", "mean", "first"]
"""Gradients are added up, running statistics averaged, and whole numbers, which replicas move alike, are rank 0's."""

_END_BYTES = 8

_WIDE = {torch.complex32: torch.complex64}
"""In what type a mean is taken, where it isn't the statistic's own or float32."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""By bytes of an element, integers as wide: bits are compared as these. Wider elements are compared in parts."""


class _Group(NamedTuple):
    """What is reduced in the same way and has the same element type, and the number of its elements."""

    reduction: Reduction
    dtype: torch.dtype
    size: int

    def shard(self, owner: int, replicas: int) -> slice:
        return slice(self.size * owner // replicas, self.size * (owner + 1) // replicas)


class Layout:
    """How a block's gradients and statistics are cut into shards: the same in every replica.

    Parameters
    ----------
    stage
        The block.
    replicas
        How many there are.
    """

    def __init__(self, stage: Stage, replicas: int) -> None:
        self.stage, self.replicas = stage, replicas
        self._slots = pending_sums(stage)
        # What a forward makes later, or gives another shape, as a mask that it keeps, nobody has to share: the rehearsal
        # has looked.
        saved = stage.module.plain_state_dict()
        self._statistics = {
            name: one.detach().clone()
            for name, one in running_statistics(stage).items()
            if name in saved or _has_mean(one)  # other whole numbers, as masks, replicas move alike
        }
        members: dict[tuple[Reduction, torch.dtype], list[Tensor]] = {}
        for reduction, tensor in self._kinds([slot.like for slot in self._slots]):
            members.setdefault((reduction, tensor.dtype), []).append(tensor)
        groups = [_Group(*key, sum(tensor.numel() for tensor in tensors)) for key, tensors in members.items()]
        # Wide elements first, so that each group's bytes begin at a multiple of its elements' size.
        self.groups = sorted(groups, key=lambda group: -group.dtype.itemsize)

    @property
    def gradients(self) -> int:
        """How many gradients there are, each of which a replica may have or not."""
        return len(self._slots)

    def shard_bytes(self, owner: int) -> int:
        """Return the size of a replica's shard in bytes."""
        lengths = (
            (len(range(*group.shard(owner, self.replicas).indices(group.size))), group.dtype.itemsize)
            for group in self.groups
        )
        return sum(length * itemsize for length, itemsize in lengths)

    @property
    def largest_message(self) -> int:
        """Size in bytes that no message between replicas exceeds."""
        shards = max(self.shard_bytes(owner) for owner in range(self.replicas))
        return shards + _END_BYTES + self.gradients

    def read(self) -> tuple[list[Tensor], list[bool]]:
        """Return a copy of each group in one flat tensor, and which gradients there are; others are zeros."""
        values = [slot.read() for slot in self._slots]
        filled = [
            torch.zeros_like(slot.like) if value is None else value
            for slot, value in zip(self._slots, values, strict=True)
        ]
        members: dict[tuple[Reduction, torch.dtype], list[Tensor]] = {}
        for reduction, tensor in self._kinds(filled):
            members.setdefault((reduction, tensor.dtype), []).append(tensor.detach().reshape(-1))
        flat = [torch.cat(members[group.reduction, group.dtype]).cpu() for group in self.groups]
        return flat, [value is not None for value in values]

    def write(self, flat: Sequence[Tensor], present: Sequence[bool]) -> None:
        """Put reduced groups in place of the block's own; gradients that no replica has stay away."""
        offsets = dict.fromkeys(((group.reduction, group.dtype) for group in self.groups), 0)
        whole = {
            (group.reduction, group.dtype): tensor for group, tensor in zip(self.groups, flat, strict=True)
        }
        own = [slot.like for slot in self._slots]
        for position, (reduction, tensor) in enumerate(self._kinds(own)):
            key = reduction, tensor.dtype
            start, offsets[key] = offsets[key], offsets[key] + tensor.numel()
            value = whole[key][start : offsets[key]].view(tensor.shape).to(tensor.device)
            if position >= self.gradients:
                # Behind autograd's back: a graph that is kept for a later backward may refer to the buffer, whose
                # running statistics it does not use.
                overwrite(tensor, value)
            elif present[position]:
                self._slots[position].write(value)

    def _kinds(self, gradients: Sequence[Tensor]) -> list[tuple[Reduction, Tensor]]:
        kinds: list[tuple[Reduction, Tensor]] = [("sum", tensor) for tensor in gradients]
        current = running_statistics(self.stage)
        statistics = [_fitting(current.get(name), like) for name, like in self._statistics.items()]
        return kinds + [("mean" if _has_mean(tensor) else "first", tensor) for tensor in statistics]


class Summation:
    """The sum after one step, seen from one replica.

    Parameters
    ----------
    layout
        Of the block.
    rank
        Of this replica.
    end
        The step before which this replica's run of steps ends, as far as it knows.
    """

    def __init__(self, layout: Layout, rank: int, end: int) -> None:
        self._layout, self._rank = layout, rank
        self._flat, self._present = layout.read()
        self._parts = {rank: self._shard(rank)}
        self._sums: dict[int, list[Tensor]] = {}
        self._ends = {rank: end}

    @property
    def end(self) -> int:
        """The end of the run of steps that rank 0 knows; whole once its part is here."""
        return self._ends[0]

    @property
    def parts_missing(self) -> list[int]:
        """Ranks whose parts are awaited."""
        return [rank for rank in range(self._layout.replicas) if rank not in self._parts]

    @property
    def sums_missing(self) -> list[int]:
        """Ranks whose sums are awaited."""
        return [rank for rank in range(self._layout.replicas) if rank not in self._sums]

    def part(self, owner: int) -> Tensor:
        """Return the message to a replica with this one's part of its shard, as bytes."""
        end = torch.tensor(list(self._ends[self._rank].to_bytes(_END_BYTES, "little")), dtype=torch.uint8)
        present = torch.tensor(self._present, dtype=torch.uint8)
        return torch.cat([*(_bytes(tensor) for tensor in self._shard(owner)), end, present])

    def take_part(self, rank: int, message: Tensor) -> None:
        """Take in a replica's part of this one's shard.

        Raises
        ------
        ProtocolError
            It isn't of the right size, or says something impossible.
        """
        trailer = _END_BYTES + self._layout.gradients
        shard = self._checked(message, self._layout.shard_bytes(self._rank) + trailer)[:-trailer]
        end, flags = message[-trailer:][:_END_BYTES], message[-trailer:][_END_BYTES:]
        if bool((flags > 1).any()):
            raise ProtocolError("a flag that is neither 0 nor 1")
        self._parts[rank] = self._cut(shard, self._rank)
        self._ends[rank] = int.from_bytes(bytes(end.tolist()), "little")
        self._present = [
            mine or bool(theirs) for mine, theirs in zip(self._present, flags.tolist(), strict=True)
        ]

    def add_up(self) -> Tensor:
        """Reduce this replica's shard, once all parts are here; return the message with it, as bytes."""
        parts = [self._parts[rank] for rank in range(self._layout.replicas)]
        self._sums[self._rank] = [
            _reduced(group.reduction, [part[index] for part in parts])
            for index, group in enumerate(self._layout.groups)
        ]
        return torch.cat([torch.empty(0, dtype=torch.uint8), *map(_bytes, self._sums[self._rank])])

    def take_sum(self, owner: int, message: Tensor) -> None:
        """Take in the sum of another replica's shard.

        Raises
        ------
        ProtocolError
            It isn't of the right size.
        """
        self._sums[owner] = self._cut(self._checked(message, self._layout.shard_bytes(owner)), owner)

    def finish(self) -> None:
        """Give the block what all replicas have come to, once all sums are here."""
        for owner, shard in self._sums.items():
            for index, group in enumerate(self._layout.groups):
                self._flat[index][group.shard(owner, self._layout.replicas)] = shard[index]
        self._layout.write(self._flat, self._present)

    def _shard(self, owner: int) -> list[Tensor]:
        return [
            tensor[group.shard(owner, self._layout.replicas)]
            for group, tensor in zip(self._layout.groups, self._flat, strict=True)
        ]

    def _cut(self, data: Tensor, owner: int) -> list[Tensor]:
        """Return the groups of a shard, of its bytes."""
        found, offset = [], 0
        for group in self._layout.groups:
            extent = group.shard(owner, self._layout.replicas)
            length = (extent.stop - extent.start) * group.dtype.itemsize
            found.append(data[offset : offset + length].view(group.dtype))
            offset += length
        return found

    @staticmethod
    def _checked(message: Tensor, size: int) -> Tensor:
        if message.dtype != torch.uint8 or message.shape != (size,):
            raise ProtocolError(
                f"a message of {message.numel()} elements, but the block's layers make it {size} bytes"
            )
        return message


def _reduced(reduction: Reduction, parts: Sequence[Tensor]) -> Tensor:
    """Reduce the replicas' parts of one group, in the order of their ranks."""
    if reduction == "first":
        return parts[0]
    if reduction == "sum":
        return _total(parts)
    # In 8 or 16 bits the sum may be too large where the mean isn't, or there is no addition at all.
    kind = parts[0].dtype
    wide = _WIDE.get(kind, kind if kind.itemsize >= 4 else torch.float32)
    mean = (_total([part.to(wide) for part in parts]) / len(parts)).to(kind)
    # What is alike in all replicas, as a constant is, must stay as it is, to the bit.
    word = _WORDS.get(kind.itemsize, torch.int64)
    bits = [part.view(word) for part in parts]
    alike = torch.stack([one == bits[0] for one in bits]).all(0)
    return torch.where(alike, bits[0], mean.view(word)).view(kind)


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _fitting(statistic: Tensor | None, like: Tensor) -> Tensor:
    """Return a statistic, or what stands for one that has changed its shape or type."""
    if statistic is None or (statistic.shape, statistic.dtype) != (like.shape, like.dtype):
        return like
    return statistic


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
