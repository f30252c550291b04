"""A block dies: in any interleaving, those that are left come to rest after the same step."""

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
    Done,
    ErrorArrived,
    Event,
    Finished,
    Halt,
    Policy,
    Publish,
    RunForward,
    RunUpdate,
    Send,
    Wait,
)
from lowdimfa.services.block.schedule import Schedule
from lowdimfa.tickets import Ticket


class Loss(Simulation):
    """One block dies before a turn; the head is halted and, once it is at rest, the others at any later time."""

    def __init__(
        self,
        blocks: int,
        rules: Policy,
        steps: range,
        seed: int,
        *,
        lost: int,
        turn: int,
        stop_turn: int | None = None,
        frozen: Container[int] = (),
    ) -> None:
        super().__init__(blocks, rules, steps, seed, stop_turn, frozen=frozen)
        self.head = self.nodes[-1]
        self.lost, self.turn = self.nodes[lost], turn
        self.head_told = self.others_told = False

    @property
    def left(self) -> list[int]:
        return [index for index, node in enumerate(self.nodes) if not node.dead]

    def run(self) -> None:
        for node in self.nodes:
            self.decide(node, node.schedule.start())
        self.go_on()
        self.turn = self.turns  # it may come to rest before the turn at which the block was to die
        self.intervene()
        self.go_on()
        self.intervene()
        self.go_on()
        assert all(self.nodes[index].done for index in self.left), [
            self.nodes[index].schedule.waiting_for for index in self.left
        ]

    def intervene(self) -> None:
        super().intervene()
        if self.turns >= self.turn and not self.lost.dead:
            self.die()
        if self.lost.dead and not self.head.dead and not self.head_told:
            self.head_told = True
            self.mail.append((len(self.nodes) - 1, Halt(None)))
        if self.lost.dead and (self.head.dead or self.head.done) and not self.others_told:
            self.others_told = True
            through = None if self.head.dead else self.head.schedule.published
            others = [index for index in self.left if index < len(self.nodes) - 1]
            self.mail += [(index, Halt(through)) for index in others]

    def die(self) -> None:
        """Let the block do nothing any more; what it has sent may be lost on its way."""
        self.lost.dead, self.lost.running = True, None
        lost = self.nodes.index(self.lost)
        of_lost = ErrorArrived if self.lost is self.head else ActivationArrived
        self.mail = [
            (block, event)
            for block, event in self.mail
            if not isinstance(event, of_lost) or block not in range(lost + 2) or self.random.random() < 0.5
        ]


def check(loss: Loss) -> int:
    """Run a simulation, hold it to what a halt promises, and return the step that most is applied of."""
    loss.run()
    learning = [index for index in loss.left if loss.nodes[index].rules.learns]
    applied = [loss.nodes[index].schedule.applied_steps for index in learning] or [0]
    if loss.head.dead:
        assert max(applied) - min(applied) <= loss.head.rules.staleness + 1
    else:
        assert set(applied) == {loss.head.schedule.applied_steps}
        if loss.lost.rules.learns:
            assert loss.lost.schedule.applied_steps <= applied[0]  # so it lacks steps, and has none too many
        for index in set(loss.left) - set(learning):
            assert loss.nodes[index].schedule.applied_steps >= applied[0]
    return max(applied)


RULES = st.builds(
    policy, m=st.integers(1, 4), w=st.integers(1, 8), s=st.integers(0, 3), probe_every=st.integers(0, 3)
)


@given(
    data=st.data(),
    blocks=st.integers(2, 5),
    rules=RULES,
    first_step=st.integers(0, 7),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    turn=st.integers(0, 250),
)
def test_a_block_that_is_not_the_head_dies_and_all_others_have_the_heads_steps(
    data: st.DataObject, blocks: int, rules: Policy, first_step: int, steps: int, seed: int, turn: int
) -> None:
    lost = data.draw(st.integers(0, blocks - 2))
    frozen = data.draw(st.sets(st.integers(0, blocks - 2)))
    course = range(first_step, first_step + steps)
    check(Loss(blocks, rules, course, seed, lost=lost, turn=turn, frozen=frozen))


@given(
    blocks=st.integers(2, 5),
    rules=RULES,
    first_step=st.integers(0, 7),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    turn=st.integers(0, 250),
)
def test_the_head_dies_and_the_others_differ_by_no_more_than_the_staleness_and_one(
    blocks: int, rules: Policy, first_step: int, steps: int, seed: int, turn: int
) -> None:
    check(Loss(blocks, rules, range(first_step, first_step + steps), seed, lost=blocks - 1, turn=turn))


@given(
    data=st.data(),
    blocks=st.integers(2, 5),
    rules=RULES,
    seed=st.integers(0, 2**32),
    turn=st.integers(0, 150),
    stop_turn=st.integers(0, 150),
)
def test_a_loss_while_the_run_is_told_to_end_early(
    data: st.DataObject, blocks: int, rules: Policy, seed: int, turn: int, stop_turn: int
) -> None:
    lost = data.draw(st.integers(0, blocks - 1))
    check(Loss(blocks, rules, range(6), seed, lost=lost, turn=turn, stop_turn=stop_turn))


@pytest.mark.parametrize("blocks", [2, 3])
def test_wherever_the_loss_comes_blocks_rest_at_every_step_there_is(blocks: int) -> None:
    reached = set()
    for m, w, s in itertools.product((1, 2), (1, 3), (0, 1)):
        rules = policy(m=m, w=w, s=s, probe_every=2)
        whole = Simulation(blocks, rules, range(4), 0)
        whole.run()
        for turn in range(0, whole.turns, 1 + whole.turns // 30):
            reached.add(check(Loss(blocks, rules, range(4), 0, lost=0, turn=turn)))
    assert reached == {0, 1, 2, 3, 4}


def begun(schedule: Schedule, *events: Event) -> Schedule:
    schedule.start()
    for event in events:
        schedule.handle(event)
    return schedule


ZERO, ONE = Ticket(0, 0), Ticket(1, 0)
FORWARDED = Finished(RunForward(ZERO, False))


def test_a_halted_head_ends_the_forward_that_it_is_in_and_publishes_it() -> None:
    schedule = begun(Schedule(policy(head=True), 0, 9), ActivationArrived(ZERO), ActivationArrived(ONE))
    assert schedule.published is None
    assert schedule.handle(Halt(None)) == []
    assert schedule.handle(FORWARDED) == [Publish(ZERO, False), ApplyStep(0)]
    assert schedule.published == RunUpdate(ZERO, "train")
    assert schedule.handle(Finished(ApplyStep(0))) == [Done()]


def test_the_last_error_published_is_the_probes_where_there_is_one() -> None:
    schedule = begun(Schedule(policy(head=True, m=2, probe_every=1), 3, 9), ActivationArrived(Ticket(3, 0)))
    schedule.handle(Finished(RunForward(Ticket(3, 0), True)))
    assert schedule.published == RunUpdate(Ticket(3, 0), "probe")


def test_a_halted_block_waits_for_the_error_that_the_head_has_broadcast() -> None:
    schedule = begun(Schedule(policy(first=True, w=9, s=9), 0, 9), FORWARDED)
    schedule.handle(Halt(RunUpdate(ZERO, "train")))
    assert schedule.handle(Finished(RunForward(ONE, False))) == [Send(ONE), Wait("error")]
    assert schedule.waiting_for == "train error of step 0, micro-batch 0 from the head"
    assert schedule.handle(ErrorArrived(ZERO, "train")) == [RunUpdate(ZERO, "train")]
    assert schedule.handle(Finished(RunUpdate(ZERO, "train"))) == [ApplyStep(0)]
    assert schedule.handle(Finished(ApplyStep(0))) == [Done()]


def test_a_block_that_is_halted_before_the_heads_first_error_is_done() -> None:
    schedule = begun(Schedule(policy(), 0, 9))
    assert schedule.handle(Halt(None)) == [Done()]
    assert schedule.applied_steps == 0


def test_what_is_wrong_is_refused_by_a_halted_block_too() -> None:
    schedule = begun(Schedule(policy(first=True), 0, 9), FORWARDED, Halt(RunUpdate(ZERO, "train")))
    with pytest.raises(ProtocolError, match="not forwarded"):
        schedule.handle(ErrorArrived(ONE, "train"))
