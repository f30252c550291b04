"""Where the workers' states come from after a loss: none goes back further than it must, and all meet at one step."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.block.building import Checkpointed, Own
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.recovery.sources import way_back


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, numpy.zeros(0, numpy.uint8), {})


@given(
    applied=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    lost=st.sets(st.integers(0, 5)),
    checkpoint=st.none() | st.integers(0, 50),
    kept=st.dictionaries(st.integers(0, 5), st.integers(0, 50)),
    frozen=st.sets(st.integers(0, 4)),
)
def test_with_rejoin_only_the_lost_go_back_and_to_the_newest_state_there_is(
    applied: list[int], lost: set[int], checkpoint: int | None, kept: dict[int, int], frozen: set[int]
) -> None:
    left = {number: steps for number, steps in enumerate(applied) if number not in lost}
    snapshots = {number: snapshot(step) for number, step in kept.items()}
    learning = set(range(len(applied))) - frozen or {0}
    way = way_back("rejoin", left, lost, len(applied), checkpoint, snapshots, learning)
    has = []
    for number, source in enumerate(way.sources):
        if number in left:
            assert source == Own()
            has.append(left[number])
        else:
            newest = max(checkpoint or 0, kept.get(number, 0))
            assert source == snapshots.get(number) or source == Checkpointed(checkpoint)
            assert (source.step if isinstance(source, Snapshot | Checkpointed) else None) in (newest, None)
            has.append(newest)
    assert way.step == max(steps for number, steps in enumerate(has) if number in learning)
    assert way.missed == {
        number: way.step - steps
        for number, steps in enumerate(has)
        if number in learning and steps < way.step
    }


@given(st.none() | st.integers(0, 50), st.integers(1, 6))
def test_with_restart_all_go_back_to_the_checkpoint(checkpoint: int | None, workers: int) -> None:
    way = way_back("restart", {0: 99}, {workers - 1}, workers, checkpoint, {0: snapshot(98)})
    assert way == (checkpoint or 0, [Checkpointed(checkpoint)] * workers, {})
