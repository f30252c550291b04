"""Several replicas of a block: each walks its own micro-batches, and all end a run of steps at one step."""

from __future__ import annotations

import itertools
from collections.abc import Container

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_simulation import Simulation, policy

from lowdimfa.errors import ProtocolError
from lowdimfa.services.block.instructions import (
    ActivationArrived,
    ApplyStep,
    EndAt,
    ErrorArrived,
    Finished,
    Policy,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.tickets import Ticket


def check(
    replicas: list[int],
    rules: Policy,
    steps: range,
    seed: int,
    stop_turn: int | None = None,
    frozen: Container[int] = (),
) -> int:
    """Run a simulation; return the step that all workers reached."""
    simulation = Simulation(len(replicas), rules, steps, seed, stop_turn, replicas, frozen)
    simulation.run()
    (reached,) = {node.schedule.last_step for node in simulation.nodes}
    whole = [Ticket(t, j) for t in range(steps.start, reached) for j in range(rules.microbatches)]
    for block in range(len(replicas)):
        ranks = [
            node for node, seat in zip(simulation.nodes, simulation.seats, strict=True) if seat[0] == block
        ]
        for node in ranks:
            assert node.schedule.applied_steps == reached
            assert node.of(RunForward) == node.forwards
            assert node.of(RunUpdate, ApplyStep) == node.updates
        forwarded = [
            item.ticket for node in ranks for item in node.of(RunForward) if isinstance(item, RunForward)
        ]
        assert sorted(forwarded) == whole  # every micro-batch by one replica, none twice
    return reached


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], Policy]:
    """Draw numbers of replicas, and rules whose micro-batches each of them divides."""
    microbatches = draw(st.integers(1, 6))
    divisors = [number for number in range(1, microbatches + 1) if microbatches % number == 0]
    replicas = draw(st.lists(st.sampled_from(divisors), min_size=0, max_size=3))
    rules = policy(
        m=microbatches,
        w=draw(st.integers(1, 6)),
        s=draw(st.integers(0, 3)),
        probe_every=draw(st.integers(0, 3)),
    )
    return [*replicas, 1], rules


@given(shape=shapes(), first_step=st.integers(0, 5), steps=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_any_interleaving_completes_by_the_rules(
    shape: tuple[list[int], Policy], first_step: int, steps: int, seed: int
) -> None:
    assert check(*shape, range(first_step, first_step + steps), seed) == first_step + steps


@given(
    shape=shapes(),
    first_step=st.integers(0, 5),
    steps=st.integers(0, 6),
    seed=st.integers(0, 2**32),
    turn=st.integers(0, 200),
    frozen=st.sets(st.integers(0, 3)),
)
def test_any_interleaving_with_an_early_end_ends_all_replicas_at_one_step(
    shape: tuple[list[int], Policy], first_step: int, steps: int, seed: int, turn: int, frozen: set[int]
) -> None:
    reached = check(*shape, range(first_step, first_step + steps), seed, turn, frozen)
    assert first_step + min(steps, 1) <= reached <= first_step + steps


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_early_end_comes_early(staleness: int) -> None:
    reached = set()
    for turn, seed in itertools.product(range(0, 120, 10), range(4)):
        reached.add(check([2, 1, 1], policy(m=2, w=4, s=staleness), range(12), seed, turn))
    assert len(reached) > 2 and max(reached) < 12


def test_a_replica_walks_its_own_micro_batches() -> None:
    schedule = Schedule(policy(m=4, w=9, replicas=2, rank=1), 3, 5)
    mine, next_mine = Ticket(3, 1), Ticket(3, 3)
    assert schedule.start() == [Wait("activation")]
    assert schedule.handle(ErrorArrived(Ticket(3, 0), "train")) == []
    assert schedule.handle(ErrorArrived(Ticket(9, 0), "train")) == []  # another's, in whatever run of steps
    assert schedule.handle(ActivationArrived(next_mine)) == [Wait("activation")]
    assert schedule.handle(ActivationArrived(mine)) == [RunForward(mine, False)]
    assert schedule.handle(Finished(RunForward(mine, False))) == [Send(mine), RunForward(next_mine, False)]
    assert schedule.in_flight == 1
    assert schedule.handle(ErrorArrived(mine, "train")) == []
    assert schedule.handle(Finished(RunForward(next_mine, False))) == [
        Send(next_mine),
        RunUpdate(mine, "train"),
    ]
    with pytest.raises(ProtocolError, match="step 4, micro-batch 2: an activation for another replica"):
        schedule.handle(ActivationArrived(Ticket(4, 2)))


def test_the_first_block_puts_the_end_behind_what_its_other_replicas_may_have_begun() -> None:
    schedule = Schedule(policy(first=True, m=2, w=9, s=1, replicas=2), 0, 9)
    schedule.start()
    schedule.handle(EndAt(0))
    assert schedule.last_step == 2  # before the sum of step 0 the others may be in step 1
