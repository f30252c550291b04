"""The schedule, proved in a simulation of several blocks without network, clocks or threads."""

from __future__ import annotations

import itertools
from collections.abc import Container

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_simulation import Simulation, policy

from lowdimfa.errors import PeerError, ProtocolError
from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    Compute,
    Done,
    ErrorArrived,
    Event,
    Finished,
    Instruction,
    PeerLost,
    Policy,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.tickets import Ticket


def check(blocks: int, rules: Policy, steps: range, seed: int, frozen: Container[int] = ()) -> None:
    simulation = Simulation(blocks, rules, steps, seed, frozen=frozen)
    simulation.run()
    for node in simulation.nodes:
        assert node.of(RunForward) == node.forwards
        assert node.of(RunUpdate, ApplyStep) == node.updates
        if rules.staleness == 0 or not node.rules.learns:
            sequential: list[Compute] = []
            for t in steps:
                sequential += [x for x in node.forwards if isinstance(x, RunForward) and x.ticket.step == t]
                sequential += [ApplyStep(t)]
            assert node.of(RunForward, ApplyStep) == sequential


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_every_small_combination_completes_by_the_rules(blocks: int, staleness: int) -> None:
    combinations = itertools.product((1, 2, 3), (1, 2, 3, 7), (0, 1, 2))
    for (m, w, probe_every), seed in itertools.product(combinations, range(3)):
        check(blocks, policy(m=m, w=w, s=staleness, probe_every=probe_every), range(4), seed)


@given(
    blocks=st.integers(1, 5),
    rules=st.builds(
        policy,
        m=st.integers(1, 5),
        w=st.integers(1, 8),
        s=st.integers(0, 3),
        probe_every=st.integers(0, 3),
    ),
    first_step=st.integers(0, 7),
    steps=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    frozen=st.sets(st.integers(0, 4)),
)
def test_any_interleaving_completes_by_the_rules(
    blocks: int, rules: Policy, first_step: int, steps: int, seed: int, frozen: set[int]
) -> None:
    check(blocks, rules, range(first_step, first_step + steps), seed, frozen)


def drive(schedule: Schedule, *events: Event) -> list[Instruction]:
    """Start, hand over the events, and return the last answer."""
    answer = schedule.start()
    for event in events:
        answer = schedule.handle(event)
    return answer


ZERO = Ticket(0, 0)
FORWARDED = Finished(RunForward(ZERO, False))


def test_a_whole_probed_step_by_hand() -> None:
    schedule = Schedule(policy(m=1, probe_every=2), 0, 1)
    assert schedule.start() == [Wait("activation")]
    assert schedule.handle(ActivationArrived(ZERO)) == [RunForward(ZERO, True)]
    assert schedule.handle(Finished(RunForward(ZERO, True))) == [Send(ZERO), Wait("error")]
    assert schedule.handle(ErrorArrived(ZERO, "probe")) == [Wait("error")]
    assert schedule.handle(ErrorArrived(ZERO, "train")) == [RunUpdate(ZERO, "train")]
    assert schedule.handle(ErrorArrived(ZERO, "train")) == []
    assert schedule.in_flight == 1
    assert schedule.handle(Finished(RunUpdate(ZERO, "train"))) == [RunUpdate(ZERO, "probe")]
    assert schedule.in_flight == 0
    assert schedule.handle(Finished(RunUpdate(ZERO, "probe"))) == [ApplyStep(0)]
    assert schedule.handle(Finished(ApplyStep(0))) == [Done()]
    assert schedule.handle(ErrorArrived(ZERO, "probe")) == []


def test_window_smaller_than_the_step_and_no_staleness_goes_on() -> None:
    schedule = Schedule(policy(first=True, m=2, w=1), 0, 1)
    assert drive(schedule, FORWARDED) == [Send(ZERO), Wait("window")]
    assert schedule.handle(ErrorArrived(ZERO, "train")) == [RunUpdate(ZERO, "train")]
    assert schedule.handle(Finished(RunUpdate(ZERO, "train"))) == [RunForward(Ticket(0, 1), False)]


def test_staleness_lets_the_next_step_run_ahead_and_no_further() -> None:
    strict, loose = (Schedule(policy(first=True, w=9, s=s), 5, 9) for s in (0, 1))
    forwarded = [Finished(RunForward(Ticket(step, 0), False)) for step in (5, 6)]
    assert drive(strict, forwarded[0]) == [Send(Ticket(5, 0)), Wait("staleness")]
    assert drive(loose, forwarded[0])[1] == RunForward(Ticket(6, 0), False)
    assert loose.handle(forwarded[1])[1] == Wait("staleness")


def test_updates_and_steps_come_before_forwards() -> None:
    schedule = Schedule(policy(first=True, w=2, s=1), 0, 3)
    second = Finished(RunForward(Ticket(1, 0), False))
    drive(schedule, FORWARDED, ErrorArrived(ZERO, "train"))
    assert schedule.handle(second) == [Send(Ticket(1, 0)), RunUpdate(ZERO, "train")]
    assert schedule.handle(Finished(RunUpdate(ZERO, "train"))) == [ApplyStep(0)]
    assert schedule.handle(Finished(ApplyStep(0))) == [RunForward(Ticket(2, 0), False)]


def test_a_block_with_nothing_to_learn_waits_for_no_error() -> None:
    schedule = Schedule(policy(first=True, m=1, w=1, probe_every=1, learns=False), 0, 2)
    answer = schedule.start()
    for step in range(2):
        ticket = Ticket(step, 0)
        assert answer == [RunForward(ticket, True)]
        assert schedule.handle(Finished(RunForward(ticket, True))) == [Send(ticket), ApplyStep(step)]
        answer = schedule.handle(Finished(ApplyStep(step)))
    assert answer == [Done()]


@pytest.mark.parametrize(
    ("rules", "before", "event", "step"),
    [
        (policy(), [], ActivationArrived(Ticket(2, 0)), 2),
        (policy(), [], ActivationArrived(Ticket(-1, 0)), -1),
        (policy(m=2), [], ActivationArrived(Ticket(1, 2)), 1),
        (policy(m=2), [], ActivationArrived(Ticket(1, -1)), 1),
        (policy(first=True), [], ActivationArrived(ZERO), 0),
        (policy(first=True), [], ErrorArrived(ZERO, "train"), 0),
        (policy(first=True, m=2), [FORWARDED], ErrorArrived(Ticket(0, 1), "train"), 0),
        (policy(first=True), [FORWARDED], ErrorArrived(Ticket(7, 0), "train"), 7),
        (policy(first=True), [FORWARDED], ErrorArrived(ZERO, "probe"), 0),
        (policy(first=True, head=True), [FORWARDED], ErrorArrived(ZERO, "train"), 0),
        (policy(first=True, m=2, learns=False), [FORWARDED], ErrorArrived(ZERO, "train"), 0),
        (policy(), [], FORWARDED, 0),
        (policy(first=True), [FORWARDED], FORWARDED, 0),
        (policy(first=True), [], Finished(ApplyStep(1)), 1),
    ],
)
def test_what_cannot_belong_to_the_run_is_refused(
    rules: Policy, before: list[Event], event: Event, step: int
) -> None:
    schedule = Schedule(rules, 0, 2)
    drive(schedule, *before)
    with pytest.raises(ProtocolError, match=f"step {step}") as caught:
        schedule.handle(event)
    assert caught.value.step == step


@pytest.mark.parametrize(
    ("rules", "events", "words"),
    [
        (policy(m=2), [], "activation of step 3, micro-batch 0 from the block before"),
        (policy(first=True), [], "its own computation of step 3, micro-batch 0"),
        (
            policy(first=True),
            [Finished(RunForward(Ticket(3, 0), False))],
            "train error of step 3, micro-batch 0 from the head (the staleness limit holds back step 4, micro-batch 0)",
        ),
        (
            policy(first=True, head=True),
            [Finished(RunForward(Ticket(3, 0), False))],
            "its own optimiser, at step 3",
        ),
    ],
)
def test_a_lost_peer_is_named_with_what_was_awaited(rules: Policy, events: list[Event], words: str) -> None:
    schedule = Schedule(rules, 3, 5)
    drive(schedule, *events)
    with pytest.raises(PeerError) as caught:
        schedule.handle(PeerLost("block 1", "connection reset"))
    assert caught.value.message == f"lost block 1 (connection reset) while waiting for {words}"
    assert caught.value.step == 3


def test_the_last_error_is_awaited_by_name() -> None:
    schedule = Schedule(policy(first=True), 0, 1)
    drive(schedule, FORWARDED)
    assert schedule.waiting_for == "train error of step 0, micro-batch 0 from the head"


def test_a_peer_that_leaves_after_the_end_is_no_loss() -> None:
    schedule = Schedule(policy(), 4, 4)
    assert schedule.start() == [Done()]
    assert schedule.waiting_for == "nothing, all steps are applied"
    assert schedule.handle(PeerLost("block 1", "closed")) == []
