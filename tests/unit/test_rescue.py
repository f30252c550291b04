"""What a recovery brings back: whose state is lost or doubtful, also after recoveries that came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from lossy_engine import plan

from lowdimfa.errors import BlockLostError, LowdimfaError, NotFiniteError
from lowdimfa.services.block.building import Checkpointed, Own, Source
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.recovery.policy import RecoveryPolicy
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.trainer import rescue, worker_group
from lowdimfa.services.trainer.engine import Saved
from lowdimfa.services.trainer.rescue import Rescue
from lowdimfa.services.trainer.worker_group import Connected, WorkerGroup

SAVED = Saved(3, lambda: 3)


class Worker:
    """Has made five steps, and keeps from where it was given its states."""

    def __init__(self, number: int) -> None:
        self.number, self.seat, self.actor = number, Seat(number), None
        self.sources: list[Source] = []

    def ask(self, method: object) -> Any:
        return SimpleNamespace(worker=self)

    def compute(self, method: object, step: int, source: Source) -> None:
        assert method is BlockWorker.load
        self.sources.append(source)


class Group(WorkerGroup):
    """Raises what a test says in place of connecting."""

    losses: list[LowdimfaError]

    def connect(self) -> Connected:
        if self.losses:
            raise self.losses.pop(0)
        return Connected([], [], [])


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Group:
    def answers(asked: Sequence[Any], seconds: float) -> dict[int, Any]:
        return {each.worker.number: SimpleNamespace(applied_steps=5) for each in asked}

    monkeypatch.setattr(worker_group, "Placement", lambda *arguments: SimpleNamespace(start=Worker))
    monkeypatch.setattr(worker_group, "gather", lambda calls, what, seconds: calls)
    monkeypatch.setattr(worker_group, "ray", SimpleNamespace(kill=lambda actor: None))
    monkeypatch.setattr(rescue, "answers", answers)
    group = Group(plan(), tmp_path, UserCode())
    group.losses, group.stateless = [], set()
    return group


def given(group: Group) -> list[Source]:
    return [worker.sources[-1] for worker in group.workers]  # type: ignore[attr-defined]


def test_a_doubtful_state_is_not_forgotten_by_a_recovery_that_came_to_nothing(group: Group) -> None:
    another = BlockLostError("block 0 was lost", block=0)
    group.losses = [another]
    recovering = Rescue(group, snapshots=False)
    with pytest.raises(BlockLostError):
        recovering.recover(NotFiniteError("NaN", block=1), "rejoin", SAVED)
    recovered = recovering.recover(another, "rejoin", SAVED)
    assert given(group) == [Checkpointed(3), Checkpointed(3)]
    assert recovered.blocks == [0]


def test_a_state_that_was_given_anew_is_not_doubtful_any_more(group: Group) -> None:
    recovering = Rescue(group, snapshots=False)
    assert recovering.recover(NotFiniteError("NaN", block=1), "rejoin", SAVED).blocks == []
    assert given(group) == [Own(), Checkpointed(3)]
    recovering.recover(BlockLostError("block 0 was lost", block=0), "rejoin", SAVED)
    assert given(group) == [Checkpointed(3), Own()]


@pytest.mark.parametrize(
    ("policy", "snapshot", "read"),
    [
        ("rejoin", 5, False),
        ("rejoin", 3, False),
        ("rejoin", 2, True),
        ("rejoin", None, True),
        ("restart", 5, True),
    ],
)
def test_a_checkpoint_is_read_only_if_a_block_goes_back_to_it(
    policy: RecoveryPolicy, snapshot: int | None, read: bool, group: Group
) -> None:
    asked: list[bool] = []

    def newest_good() -> int:
        asked.append(True)
        return 3

    recovering = Rescue(group, snapshots=False)
    kept = None if snapshot is None else Snapshot(snapshot, numpy.zeros(0, numpy.uint8), {})
    recovering._snapshots |= {} if kept is None else {0: kept}
    recovering.recover(BlockLostError("block 0 was lost", block=0), policy, Saved(3, newest_good))
    assert asked == [True] * read
    assert given(group)[0] == (Checkpointed(3) if read else kept)
