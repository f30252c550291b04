"""When a block holds a run up: by its own word, whatever the trainer's clock says and however long the answer took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from lowdimfa.errors import BlockLostError
from lowdimfa.services.block.reports import Status
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.services.trainer import ticks
from lowdimfa.services.trainer.ticks import StallWatch
from lowdimfa.services.trainer.worker_calls import Worker
from lowdimfa.services.trainer.worker_group import WorkerGroup


def status(seconds: float, *, working: bool) -> Status:
    return Status(7, f"in update for {seconds:g} s", seconds, working, TrafficCount(0, 0, 0))


def look(monkeypatch: pytest.MonkeyPatch, delay: float, *statuses: Status) -> None:
    """Let workers say what they do, whose answers take their time by the trainer's clock."""
    clock = [1000.0]
    monkeypatch.setattr(ticks, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def gather(calls: list[Status], what: str, seconds: float) -> list[Status]:
        assert delay <= seconds
        clock[0] += delay
        return calls

    monkeypatch.setattr(ticks, "gather", gather)
    workers = [Worker(number, Seat(number), f"block {number}", None, 10.0) for number in range(len(statuses))]
    group = SimpleNamespace(liveness=10.0, workers=workers, ask=lambda method: list(statuses))
    watch = StallWatch(cast(WorkerGroup, group))
    clock[0] += 2.5
    watch.look()


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_the_block_that_computes_too_long_is_named(monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    statuses = status(30, working=False), status(10.1, working=True)
    with pytest.raises(BlockLostError, match=r"block 1 holds the run up: in update for 10\.1 s") as error:
        look(monkeypatch, delay, *statuses)
    assert (error.value.block, error.value.step) == (1, 7)


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_a_slow_answer_makes_no_block_slow(monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    look(monkeypatch, delay, status(30, working=False), status(9.9, working=True))
