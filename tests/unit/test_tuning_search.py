"""The search for the fastest setting, on machines that are played: noisy, drifting, too slow, out of time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowdimfa.errors import BlockLostError, InputError, LowdimfaError, StoppedError
from lowdimfa.services.lab.tuning.search import PAIRS, Changes, Search, Segment, Tried, Verdict

SECONDS = 5.0


class Machine:
    """Takes so long for a segment, and is as fast as the setting, the hour and chance make it."""

    def __init__(
        self, noise: float = 0.0, drift: Callable[[float], float] = lambda now: 1.0, seed: int = 0
    ) -> None:
        self.now, self._noise, self._drift, self._chance = 0.0, noise, drift, random.Random(seed)
        self.began: list[float] = []
        self.wrong: dict[float, LowdimfaError] = {}

    def measure(self, changes: Changes) -> Segment:
        self.began.append(self.now)
        speed = float(changes.get("speed", 1.0))
        middle, self.now = self.now + SECONDS / 2, self.now + SECONDS
        if (error := self.wrong.get(speed)) is not None:
            raise error
        return Segment(1000 * speed * self._drift(middle) * math.exp(self._chance.gauss(0, self._noise)))

    def search(self, until: float = 600.0) -> Search:
        return Search(self.measure, lambda: self.now, until)


def settings(*speeds: float) -> list[Tried]:
    return [Tried({"speed": speed}) for speed in speeds]


@example([math.nextafter(3, 0), 3.0])
@given(st.lists(st.floats(0.3, 3).filter(lambda speed: abs(speed - 1) > 0.05), min_size=1, max_size=10))
def test_without_noise_the_fastest_is_found_and_the_default_where_none_is_faster(speeds: list[float]) -> None:
    search = Machine().search(math.inf)
    best = search.best_of(settings(*speeds), math.inf)
    assert best.changes.get("speed", 1.0) == pytest.approx(max(*speeds, 1.0))
    verdict = search.duel(best) if best is not search.default else Verdict(())
    assert verdict.faster == (max(speeds) > 1)


@pytest.mark.parametrize(
    "drift",
    [
        lambda now: 1 / (1 + now / 200),
        lambda now: 1 + now / 200,
        lambda now: 1 + 0.3 * math.sin(now / 40),
    ],
    ids=["slower", "faster", "waves"],
)
def test_a_machine_whose_speed_drifts_does_not_decide(drift: Callable[[float], float]) -> None:
    """Over the search the speed changes by more than the settings differ."""
    for seed in range(20):
        speeds = [0.8, 0.9, 0.95, 1.15, 1.05, 0.7]
        random.Random(seed).shuffle(speeds)
        search = Machine(0.01, drift, seed).search()
        candidates = settings(*speeds)
        best = search.best_of(candidates, 400.0)
        assert best.changes["speed"] == 1.15
        for one in candidates:
            assert one.gain == pytest.approx(one.changes["speed"], rel=0.06)
        assert search.duel(best).faster


def test_noise_alone_seldom_takes_the_place_of_the_default() -> None:
    """The best of eight equal settings looks faster; fresh segments in turns say that it is not."""
    taken = 0
    for seed in range(200):
        search = Machine(0.05, lambda now: 1 + 0.2 * math.sin(now / 60), seed).search()
        best = search.best_of(settings(*[1.0] * 8), 400.0)
        taken += best is not search.default and search.duel(best).faster
    assert taken <= 20


def test_a_gain_that_is_less_than_what_matters_changes_nothing() -> None:
    search = Machine().search()
    best = search.best_of(settings(1.01), math.inf)
    verdict = search.duel(best)
    assert (best.changes, verdict.faster) == ({"speed": 1.01}, False)
    assert verdict.ratio == pytest.approx(1.01)


@given(st.floats(0, 300), st.integers(1, 12))
def test_no_segment_begins_that_cannot_end_in_time(until: float, number: int) -> None:
    machine = Machine()
    search = machine.search(until)
    best = search.best_of(settings(*[1 + index / 10 for index in range(number)]), 0.6 * until)
    search.duel(best)
    assert all(began == 0 or began + SECONDS <= until for began in machine.began)
    # What can be halved in a time is what was said.
    machine = Machine()
    search = machine.search(until)
    search.run(search.default)
    some = settings(*[1 + index / 10 for index in range(search.affordable(until))])
    assert search.best_of(some, until) in ([some[-1]] if len(some) > 1 else [*some, search.default])
    assert all(began == 0 or began + SECONDS <= until for began in machine.began)


def test_too_few_pairs_decide_nothing() -> None:
    assert not Verdict(()).faster
    assert not Verdict((9.0,) * (PAIRS.start - 1)).faster
    assert Verdict((9.0,) * PAIRS.start).faster


def test_what_cannot_be_had_is_noted_and_left_out() -> None:
    machine = Machine()
    machine.wrong[3.0] = BlockLostError("block 1 found no memory", block=1)
    search = machine.search()
    candidates = settings(0.9, 3.0, 1.5)
    assert search.best_of(candidates, math.inf) is candidates[2]
    assert candidates[1].failure == "block 1 found no memory" and candidates[1].gain is None
    assert len([one for one in search.tried if one is candidates[1]]) == 1


@pytest.mark.parametrize("refused", [set(), {3.0}, {3.0, 2.0}, {3.0, 2.0, 1.5}])
def test_what_a_run_is_refused_for_gives_its_place_to_the_next_best(refused: set[float]) -> None:
    machine, asked = Machine(), []

    def rehearse(changes: Changes) -> None:
        asked.append(changes["speed"])
        machine.now += SECONDS
        if changes["speed"] in refused:
            raise InputError("placement.replicas", "2 of block 0", "1 for this block")

    search = Search(machine.measure, lambda: machine.now, 600.0, rehearse=rehearse)
    candidates = settings(0.9, 3.0, 1.5, 2.0)
    best = search.best_of(candidates, 300.0)
    left = sorted({3.0, 2.0, 1.5} - refused, reverse=True)
    assert best.changes.get("speed") == (left[0] if left else None)
    assert {one.changes["speed"] for one in candidates if one.failure} == refused
    assert asked == [*sorted(refused, reverse=True), *left[:1]]
    search.best_of([one for one in candidates if not one.failure], 600.0)  # what was rehearsed is not again
    assert len(asked) == len(refused) + bool(left)
    machine.now = 601.0
    late = settings(4.0)
    late[0].gains.append(1.0)
    assert not search._begins(late[0]) and len(asked) == len(refused) + bool(left)


@pytest.mark.parametrize(
    ("speed", "error"), [(1.0, BlockLostError("gone", block=0)), (1.5, StoppedError("stopped"))]
)
def test_a_default_that_fails_and_a_stop_end_the_search_with_what_was_measured(
    speed: float, error: LowdimfaError
) -> None:
    machine = Machine()
    search = machine.search()
    search.run(search.default)
    machine.wrong[speed] = error
    with pytest.raises(type(error)):
        search.best_of(settings(1.2, 1.5), math.inf)
    assert search.default.segments


def test_the_same_machine_gives_the_same_search() -> None:
    def course() -> list[tuple[Changes, list[Segment]]]:
        search = Machine(0.1, seed=3).search()
        search.duel(search.best_of(settings(0.9, 1.1, 1.2, 1.3), 300.0))
        return [(one.changes, one.segments) for one in search.tried]

    assert course() == course()


def test_a_hopeless_setting_is_measured_once() -> None:
    machine = Machine()
    candidates = settings(2.0, 0.3, 1.9, 0.2, 0.1)  # the third of five would be kept
    machine.search().best_of(candidates, math.inf)
    assert [len(one.segments) for one in candidates] == [2, 1, 2, 1, 1]
