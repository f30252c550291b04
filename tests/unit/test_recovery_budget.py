"""The recovery budget: it grants so many within a window, with pauses that grow but stay short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.budget import RecoveryBudget


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(most: int = 10, window: float = 600.0, longest: float = 7.5) -> tuple[RecoveryBudget, Clock]:
    clock = Clock()
    return RecoveryBudget(most, window, longest, clock), clock


@given(st.integers(1, 200), st.floats(0.01, 100))
def test_it_grants_as_many_as_it_may_and_no_pause_is_longer_than_the_longest(
    most: int, longest: float
) -> None:
    budget, _ = made(most, longest=longest)
    pauses = [budget.spend() for _ in range(most + 3)]
    assert pauses[0] == 0.0
    granted = [pause for pause in pauses if pause is not None]
    assert len(granted) == most == budget.total
    assert pauses[most:] == [None] * 3
    assert all(0 < pause <= longest for pause in granted[1:])
    for index, pause in enumerate(granted[1:]):
        assert pause <= 0.1 * 2**index
        assert pause >= 0.5 * min(longest, 0.1 * 2**index)


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 5), st.floats(1, 200))
def test_no_window_ever_holds_more_than_are_granted(gaps: list[float], most: int, window: float) -> None:
    budget, clock = made(most, window)
    granted: list[float] = []
    for gap in gaps:
        clock.now += gap
        recent = [moment for moment in granted if clock.now - moment < window]
        pause = budget.spend()
        assert (pause is None) == (len(recent) >= most)
        if pause is not None:
            assert (pause == 0.0) == (not recent)
            granted.append(clock.now)
    assert budget.total == len(granted)


def test_what_left_the_window_no_longer_counts() -> None:
    budget, clock = made(2)
    assert budget.spend() == 0.0
    clock.now += 599
    assert budget.spend() is not None
    assert budget.spend() is None
    clock.now += 1
    assert budget.spend() is not None
    clock.now += 600
    assert budget.spend() == 0.0
    assert budget.total == 4


def test_what_was_spent_before_by_another_process_counts() -> None:
    clock = Clock()
    budget = RecoveryBudget(3, 600.0, 7.5, clock, [10.0, 990.0, 500.0])
    assert budget.total == 3
    assert budget.spend() is not None  # the third within the window
    assert budget.spend() is None
    assert budget.total == 4


def test_pauses_differ_so_that_many_jobs_do_not_return_in_step() -> None:
    pauses = set()
    for _ in range(20):
        budget, _ = made()
        budget.spend()
        pauses.add(budget.spend())
    assert len(pauses) > 10


def test_the_message_names_the_loss_the_figures_and_the_setting() -> None:
    budget, _ = made()
    assert budget.used_up("block 1 was lost") == (
        "block 1 was lost; that makes 11 losses within 600 s, more than run.max_recoveries (10) allows"
    )


def test_a_specification_sets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdimfa.services.trainer.budget.random.uniform", lambda low, high: high)
    specification = Specification.model_validate(
        {
            "model": {"factory": "users_own:model", "blocks": 2},
            "data": {"factory": "lowdimfa.data:digits"},
            "train": {"steps": 10},
            "run": {"max_recoveries": 3, "recovery_window_seconds": 9, "liveness_seconds": 1},
        }
    )
    budget = RecoveryBudget.of(specification)
    assert [budget.spend() for _ in range(4)] == [0.0, 0.1, 0.125, None]
    assert "within 9 s, more than run.max_recoveries (3)" in budget.used_up("x")
