"""When a block holds a run up: by its own word, whatever the trainer's clock says and however long the answer took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lowdimfa.errors import BlockLostError
from lowdimfa.services.block.worker import Status
from lowdimfa.services.rpc.topology import Topology
from lowdimfa.services.stream.resumable import TrafficCount
from lowdimfa.services.trainer import stall
from lowdimfa.services.trainer.fleet import Fleet
from lowdimfa.services.trainer.stall import StallWatch


class Answering:
    """A fleet whose blocks say what they are told, after a time that a test sets."""

    def __init__(self, clock: list[float], statuses: list[Status], delay: float) -> None:
        self._clock, self._statuses, self._delay = clock, statuses, delay

    name, lost = Fleet.name, Fleet.lost

    @property
    def seating(self) -> Topology:
        return Topology([1] * len(self._statuses), 1)

    def ask(self, method: str) -> list[Any]:
        return [method] * len(self._statuses)

    def gather(self, references: list[Any], what: str, seconds: float) -> list[Status]:
        assert self._delay <= seconds
        self._clock[0] += self._delay
        return self._statuses


def status(seconds: float, *, working: bool) -> Status:
    return Status(7, f"in update for {seconds:g} s", seconds, working, TrafficCount(0, 0, 0))


def look(monkeypatch: pytest.MonkeyPatch, delay: float, *statuses: Status) -> None:
    clock = [1000.0]
    monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch = StallWatch(cast(Fleet, Answering(clock, list(statuses), delay)), 10.0)
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
