"""The cut by measured time, with a bench whose clock says what the test wants."""

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import nn

from lowdimfa.config import TrainingConfig
from lowdimfa.measure import StageTime
from lowdimfa.partitioning import BlockPlan, partition
from lowdimfa.services.run.profile import Bench, balance_by_time

MODEL = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))


def cut_at(boundaries: Sequence[str] | int) -> list[BlockPlan]:
    return partition(MODEL, boundaries if isinstance(boundaries, int) else list(boundaries), torch.rand(2, 4))


class Clock:
    """A bench on which a block takes the sum of its layers' seconds, and a fixed time if it ends after some layer."""

    def __init__(self, layers: dict[str, float], ends: dict[str, float] | None = None) -> None:
        self.training = TrainingConfig(total_steps=1)
        self.layers, self.ends = layers, ends or {}
        self.timed: list[list[str]] = []

    def times(self, blocks: Sequence[BlockPlan]) -> list[StageTime]:
        self.timed.append([block.name for block in blocks[1:]])
        return [
            StageTime(
                sum(self.layers.get(layer.name, 1.0) for layer in block.layers),
                self.ends.get(block.layers[-1].name, 0.0),
                0.0,
            )
            for block in blocks
        ]


def balanced(clock: Clock) -> tuple[list[str], list[float], list[BlockPlan]]:
    blocks, seconds = balance_by_time(cast(Bench, clock), cut_at(2), cut_at)
    return [block.name for block in blocks[1:]], seconds, blocks


def test_an_even_cut_is_kept_after_one_measurement() -> None:
    clock = Clock({})
    assert balanced(clock)[:2] == (["3"], [3.0, 3.0])
    assert clock.timed == [["3"]]


def test_the_boundary_moves_to_where_blocks_take_the_same() -> None:
    names, seconds, blocks = balanced(Clock({"0": 3.0}))
    assert (names, seconds) == (["2"], [4.0, 4.0])
    assert [block.cost_share for block in blocks] == pytest.approx([0.5, 0.5])


def test_what_a_block_ends_with_counts_too() -> None:
    names, seconds, _ = balanced(Clock({}, ends={"2": 2.0}))
    assert (names, seconds) == (["2"], [2.0, 4.0])


def test_of_all_that_was_tried_the_best_is_taken() -> None:
    # Every cut but the first is a trap: its first block ends in a layer that is dear to end with.
    clock = Clock({"0": 2.0}, ends={"0": 9.0, "1": 9.0, "3": 9.0, "4": 9.0})
    names, seconds, _ = balanced(clock)
    assert (names, seconds) == (["3"], [4.0, 3.0])
    assert len(clock.timed) <= 4
