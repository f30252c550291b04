"""Recoveries are granted so many within a window, with pauses that grow but stay short, and where they may help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.errors import (
    BlockLostError,
    BlockWithoutRoomError,
    DiskFullError,
    HandshakeError,
    InputError,
    LowdimfaError,
    NoRoomError,
    NotFiniteError,
    PeerError,
    ProtocolError,
    RecoveriesUsedUpError,
    ResourceError,
    StoppedError,
)
from lowdimfa.services.recovery.policy import (
    BlocksFailed,
    End,
    Failure,
    GoOn,
    History,
    RecoveryPolicy,
    Rules,
    TrainerGaveUp,
    TrainerLost,
    decide,
)
from lowdimfa.services.spec import Specification

LOSS = BlocksFailed(BlockLostError("block 1 was lost", block=1))


class Budget:
    """Losses of one run, one after the other, at times that a test sets."""

    def __init__(self, most: int = 10, window: float = 600.0, longest: float = 7.5) -> None:
        self.rules = Rules("rejoin", most, window, longest)
        self.history, self.now = History(), 1000.0

    def spend(self, draw: float = 0.5) -> float | None:
        """Lose a block; return the pause before the recovery, or None if there is none."""
        decision = decide(LOSS, self.rules, self.history, self.now, draw)
        if isinstance(decision, End):
            assert decision.why == "used up"
            return None
        self.history = decision.history
        assert decision.recovery == len(self.history.begun)
        return decision.pause

    @property
    def total(self) -> int:
        return len(self.history.begun)


@given(st.integers(1, 200), st.floats(0.01, 100), st.floats(0, 1))
def test_it_grants_as_many_as_it_may_and_no_pause_is_longer_than_the_longest(
    most: int, longest: float, draw: float
) -> None:
    budget = Budget(most, longest=longest)
    pauses = [budget.spend(draw) for _ in range(most + 3)]
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
    budget = Budget(most, window)
    granted: list[float] = []
    for gap in gaps:
        budget.now += gap
        recent = [moment for moment in granted if budget.now - moment < window]
        pause = budget.spend()
        assert (pause is None) == (len(recent) >= most)
        if pause is not None:
            assert (pause == 0.0) == (not recent)
            granted.append(budget.now)
    assert budget.total == len(granted)


def test_what_left_the_window_no_longer_counts() -> None:
    budget = Budget(2)
    assert budget.spend() == 0.0
    budget.now += 599
    assert budget.spend() is not None
    assert budget.spend() is None
    budget.now += 1
    assert budget.spend() is not None
    budget.now += 600
    assert budget.spend() == 0.0
    assert budget.total == 4


def test_what_was_spent_before_by_another_process_counts() -> None:
    budget = Budget(3)
    budget.history = History((10.0, 990.0, 500.0))
    assert budget.spend() is not None  # the third within the window
    assert budget.spend() is None
    assert budget.total == 4


def test_pauses_differ_so_that_many_jobs_do_not_return_in_step() -> None:
    pauses = set()
    for draw in range(20):
        budget = Budget()
        budget.spend()
        pauses.add(budget.spend(draw / 20))
    assert len(pauses) == 20


def test_the_message_names_the_loss_the_figures_and_the_setting() -> None:
    decision = decide(LOSS, Rules("restart", 10, 600.0, 7.5), History((0.0,) * 10), 1.0, 0.0)
    assert decision == End(
        "used up",
        "block 1 was lost; that makes 11 losses within 600 s, more than run.max_recoveries (10) allows",
    )


def test_a_specification_sets_all_of_it() -> None:
    specification = Specification.model_validate(
        {
            "model": {"factory": "users_own:model", "blocks": 2},
            "data": {"factory": "lowdimfa.data:digits"},
            "train": {"steps": 10},
            "run": {"max_recoveries": 3, "recovery_window_seconds": 9, "liveness_seconds": 1},
        }
    )
    assert Rules.of(specification) == Rules(None, 3, 9.0, 0.125)


SURE = Rules("rejoin", 10, 600.0, 7.5)


@pytest.mark.parametrize(
    ("failure", "goes_on"),
    [
        (LOSS, True),
        (BlocksFailed(PeerError("a connection")), True),
        (BlocksFailed(ProtocolError("a message")), True),
        (BlocksFailed(NotFiniteError("a number")), True),
        (BlocksFailed(HandshakeError("versions")), False),
        (BlocksFailed(NoRoomError("full")), False),
        (BlocksFailed(BlockWithoutRoomError("a node is gone")), True),  # it may come back
        (BlocksFailed(DiskFullError("full")), False),
        (BlocksFailed(LowdimfaError("the user's own layer")), False),
        (BlocksFailed(InputError("a", "b", "c")), False),
        (TrainerLost(), True),
        (TrainerLost(silent=True), True),
    ],
)
def test_what_may_go_well_another_time_is_tried(failure: Failure, goes_on: bool) -> None:
    decision = decide(failure, SURE, History(), 0.0, 0.5)
    assert isinstance(decision, GoOn) == goes_on
    if isinstance(decision, GoOn):  # blocks of a lost trainer have no snapshots any more
        assert decision.policy == ("rejoin" if isinstance(failure, BlocksFailed) else "restart")
    assert decide(failure, Rules(None, 10, 600.0, 7.5), History(), 0.0, 0.5) == End("policy", failure.reason)


@pytest.mark.parametrize(
    ("error", "returned", "vanished", "waiting"),
    [
        (PeerError("x"), True, True, True),
        (BlockLostError("x"), True, True, True),
        (BlockWithoutRoomError("x"), True, True, False),
        (RecoveriesUsedUpError("x"), False, False, False),
        (LowdimfaError("x"), False, True, False),
        (ResourceError("x"), False, True, False),
        (DiskFullError("x"), False, True, False),
        (NoRoomError("x"), True, True, False),
        (NotFiniteError("x"), False, False, False),
        (StoppedError("x"), False, False, False),
    ],
)
def test_what_a_trainer_reported_decides_on_another(
    error: LowdimfaError, returned: bool, vanished: bool, waiting: bool
) -> None:
    """By whether its process returned or vanished, and, last, whether one that returned had not begun its run."""
    found = [
        isinstance(decide(TrainerGaveUp(error, gone, began), SURE, History(), 0.0, 0.5), GoOn)
        for gone, began in ((False, True), (True, True), (False, False))
    ]
    assert found == [returned, vanished, waiting]


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
def test_a_number_that_is_not_finite_again_is_no_fault_of_the_hardware(policy: RecoveryPolicy) -> None:
    rules, failure = Rules(policy, 10, 600.0, 7.5), BlocksFailed(NotFiniteError("NaN"))
    first = decide(failure, rules, History(), 0.0, 0.5)
    assert isinstance(first, GoOn)
    between = decide(LOSS, rules, first.history, 1.0, 0.5)
    assert isinstance(between, GoOn)
    assert decide(failure, rules, between.history, 2.0, 0.5) == End("incurable", "NaN")
