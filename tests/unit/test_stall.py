"""When a block holds a run up: by its own word, whatever the trainer's clock says and however long the answer took.

And when a block that waits has waited long enough.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lowdimfa.errors import BlockLostError, PeerError
from lowdimfa.services.block import observer
from lowdimfa.services.block.instructions import Policy
from lowdimfa.services.block.observer import Observer
from lowdimfa.services.block.reports import Status
from lowdimfa.services.block.runner import LOOKS, BlockRunner
from lowdimfa.services.monitoring.metrics import BlockMetrics
from lowdimfa.services.rpc.topology import Seat
from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.services.trainer import ticks
from lowdimfa.services.trainer.ticks import StallWatch
from lowdimfa.services.trainer.worker_calls import Worker
from lowdimfa.services.trainer.worker_group import WorkerGroup
from lowdimfa.tickets import Ticket


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


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_makes_no_block_slow_and_ends_no_run(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"time": 1.8e9, "monotonic": 50.0}
    monkeypatch.setattr(
        observer, "time", SimpleNamespace(**{name: partial(clock.__getitem__, name) for name in clock})
    )
    notes = Observer(BlockMetrics("job", "0", "0"), None, lambda: None)
    began = clock["time"]
    notes.begin("update", "step 3, micro-batch 0")
    clock["time"] += jump
    clock["monotonic"] += 2
    found = notes.status(TrafficCount(0, 0, 0))
    assert (found.seconds, found.working) == (2, True)
    assert found.activity == "in update of step 3, micro-batch 0 for 2.0 s"
    notes.did("update", Ticket(3, 0), began)
    notes.waited(3, "error", began)
    assert all(start <= end for _, _, start, end, _ in notes.recent)


@pytest.mark.parametrize("patience", [20.0, 50.0])
def test_a_wait_is_given_up_after_its_patience_with_as_many_looks_per_liveness(patience: float) -> None:
    liveness, waited, asked = 10.0, list[float](), list[int]()
    inbox = SimpleNamespace(take=waited.append)
    neighbours = SimpleNamespace(renew=lambda: asked.append(len(waited)))
    work = SimpleNamespace(stage=SimpleNamespace(index=1), begin=lambda step: None)
    notes = Observer(BlockMetrics("job", "1", "0"), None, lambda: None)
    parts: list[Any] = [inbox, neighbours, notes]
    runner = BlockRunner(cast(Any, work), Policy(False, False, 1, 1, 0), *parts, liveness, patience)
    with pytest.raises(
        PeerError,
        match=rf"block 1 heard nothing for {patience:.0f} s .*activation of step 3, micro-batch 0 from the block before",
    ):
        runner.run(3, 4)
    assert sum(waited) == patience and set(waited) == {liveness / LOOKS}
    assert asked == [*range(1, len(waited) + 1)]
