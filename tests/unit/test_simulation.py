"""The simulator against closed forms, bounds and its own accounts."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.services.block.instructions import ApplyStep, Compute, RunForward, RunUpdate
from lowdimfa.services.lab.simulation.backpropagation import BACKPROPAGATION, order_of_work
from lowdimfa.services.lab.simulation.clock import Clock, Cores
from lowdimfa.services.lab.simulation.decoupled import DecoupledBlock, start_decoupled
from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.names import read_name, schedule_name
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.lab.simulation.simulate import compressed, simulate, start
from lowdimfa.services.lab.simulation.trouble import Loss, Trouble

SCHEDULES = [*BACKPROPAGATION, *map(schedule_name, (0, 1, 2, 5))]
FORWARD, UPDATE, STEP = 0.010, 0.020, 0.004


def uniform(blocks: int, microbatches: int, step: float = 0.0, **other: object) -> Setting:
    return Setting(
        blocks=(BlockCosts(FORWARD, UPDATE, step),) * blocks,
        microbatches=microbatches,
        microbatch_size=8,
        activation_bytes=(4096.0,) * (blocks - 1),
        error_bytes=40.0,
        **other,  # type: ignore[arg-type]
    )


times = st.integers(1, 40).map(lambda milliseconds: milliseconds / 1000)
costs = st.builds(BlockCosts, times, times, times, st.sampled_from([0.0, 0.0005]), st.booleans())


@st.composite
def any_settings(draw: st.DrawFn) -> Setting:
    blocks = draw(st.lists(costs, min_size=1, max_size=5))
    return Setting(
        blocks=tuple(blocks),
        microbatches=draw(st.integers(1, 6)),
        microbatch_size=draw(st.sampled_from([1, 16])),
        activation_bytes=tuple(draw(st.floats(0, 1e5)) for _ in blocks[1:]),
        error_bytes=draw(st.floats(0, 1e3)),
        bandwidth=draw(st.sampled_from([math.inf, 1e6, 25e6, 1e9])),
        latency=draw(st.sampled_from([0.0, 0.001, 0.05])),
        staleness=draw(st.integers(0, 3)),
        window=draw(st.none() | st.integers(1, 8)),
        cores=draw(st.none() | st.integers(1, 3)),
        contention=draw(st.sampled_from([0.0, 0.2])),
    )


@pytest.mark.parametrize("blocks", [1, 2, 4, 7])
@pytest.mark.parametrize("microbatches", [1, 3, 8])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_gpipe_and_1f1b_take_the_known_time(blocks: int, microbatches: int, schedule: str) -> None:
    outcome = simulate(uniform(blocks, microbatches, STEP), schedule)
    expected = (microbatches + blocks - 1) * (FORWARD + UPDATE) + STEP
    assert outcome.step_seconds == pytest.approx(expected)
    assert outcome.samples_per_second == pytest.approx(8 * microbatches / expected)
    busy = microbatches * (FORWARD + UPDATE) + STEP
    assert outcome.bubble == pytest.approx([1 - busy / expected] * blocks)


@pytest.mark.parametrize(("blocks", "microbatches"), [(2, 4), (4, 8), (8, 8), (8, 32)])
def test_zero_bubble_waits_for_half_as_much_again_only(blocks: int, microbatches: int) -> None:
    """ZB-H1 idles (p - 1)(F + B - W), here with B = W = half a backward pass, and keeps no more than 1F1B."""
    outcome = simulate(uniform(blocks, microbatches), "zero-bubble")
    assert outcome.step_seconds == pytest.approx(microbatches * (FORWARD + UPDATE) + (blocks - 1) * FORWARD)
    assert max(outcome.in_flight) <= max(simulate(uniform(blocks, microbatches), "1f1b").in_flight)


def test_what_is_kept_in_memory() -> None:
    setting = uniform(4, 12)
    assert simulate(setting, "gpipe").in_flight == (12,) * 4
    assert simulate(setting, "1f1b").in_flight == (4, 3, 2, 1)
    assert max(simulate(replace(setting, window=5), "staleness-3").in_flight) == 5


@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
def test_staleness_as_deep_as_the_pipeline_leaves_no_block_idle(blocks: int) -> None:
    outcome = simulate(uniform(blocks, 4, STEP), schedule_name(blocks))
    assert max(outcome.bubble) == pytest.approx(0.0, abs=1e-9)
    assert outcome.step_seconds == pytest.approx(4 * (FORWARD + UPDATE) + STEP)


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_staleness_0_with_one_microbatch_in_closed_form(blocks: int) -> None:
    """All forwards one after the other, the head's with its update, then block 0's update and step."""
    outcome = simulate(uniform(blocks, 1, STEP), "staleness-0")
    last_update = UPDATE if blocks == 1 else 2 * UPDATE
    assert outcome.step_seconds == pytest.approx(blocks * FORWARD + last_update + STEP)


def test_staleness_0_with_two_blocks_in_closed_form() -> None:
    """The head waits for the first forward; block 0 updates while the head computes, and its last update is left."""
    outcome = simulate(uniform(2, 4, STEP), "staleness-0")
    assert outcome.step_seconds == pytest.approx(FORWARD + 4 * (FORWARD + UPDATE) + UPDATE + STEP)


def test_links_add_what_they_must() -> None:
    """One micro-batch through two blocks: forward, message, head, message back, update, step."""
    sizes = {"bandwidth": 1e6, "latency": 0.003}
    activation, error = (0.003 + 8 * 8 * size / 1e6 for size in (4096, 40))
    outcome = simulate(uniform(2, 1, STEP, **sizes), "staleness-0")
    assert outcome.step_seconds == pytest.approx(FORWARD * 2 + UPDATE * 2 + STEP + activation + error)
    outcome = simulate(uniform(2, 1, STEP, **sizes), "1f1b")
    assert outcome.step_seconds == pytest.approx(FORWARD * 2 + UPDATE * 2 + STEP + 2 * activation)


def test_a_link_that_carries_more_than_the_blocks_compute_sets_the_pace() -> None:
    setting = uniform(3, 8, bandwidth=1e6)
    outcome = simulate(setting, "staleness-4")
    assert outcome.step_seconds == pytest.approx(8 * 8 * 8 * 4096 / 1e6, rel=0.01)


def test_traffic_per_sample() -> None:
    assert simulate(uniform(5, 2), "1f1b").backward_bytes == 4 * 4096
    outcome = simulate(uniform(5, 2), "staleness-1")
    assert (outcome.forward_bytes, outcome.backward_bytes) == (4 * 4096, 4 * 40)


def started(setting: Setting, schedule: str, steps: int) -> Machine:
    name = read_name(schedule)
    machine = Machine(compressed(setting, name))
    start(machine, name, steps)
    return machine


@given(any_settings(), st.sampled_from(SCHEDULES))
def test_a_run_does_all_its_work_and_sends_no_faster_than_the_links(setting: Setting, schedule: str) -> None:
    steps, broadcast = 3, schedule not in BACKPROPAGATION
    machine = started(setting, schedule, steps)
    machine.run(steps)
    assert len(machine.step_times) == steps and machine.step_times == sorted(machine.step_times)
    assert machine.in_flight == [0] * len(setting.blocks)
    # So much was computed, in no less than that time on any core, and in none more than there is.
    passes = steps * setting.microbatches
    for block, costs_, busy in zip(range(len(setting.blocks)), setting.blocks, machine.busy(), strict=True):
        updates = costs_.learns or not broadcast or block == len(setting.blocks) - 1
        work = passes * (costs_.forward + updates * costs_.update) + steps * costs_.step
        assert work - 1e-6 <= busy <= machine.clock.now + 1e-6, block
    # So much was sent, and it took its time.
    sent = passes * setting.microbatch_size * sum(setting.activation_bytes)
    learning = sum(block.learns for block in setting.blocks[:-1])
    back = passes * setting.microbatch_size * setting.error_bytes * learning
    carried = sum(uplink.carried for uplink in machine.uplinks)
    assert carried == pytest.approx(sent + (back if broadcast else sent))
    for uplink in machine.uplinks:
        assert 8 * uplink.carried / setting.bandwidth <= machine.clock.now + 1e-6


@given(any_settings())
def test_every_microbatch_is_forwarded_once_in_each_block_and_updated_once_where_one_learns(
    setting: Setting,
) -> None:
    done: Counter[tuple[int, Compute]] = Counter()

    class Counted(DecoupledBlock):
        def _computed(self, work: Compute) -> None:
            done[self._index, work] += 1
            super()._computed(work)

    machine, blocks = Machine(setting), []
    blocks += [Counted(machine, index, 2, blocks) for index in range(len(setting.blocks))]
    for block in blocks:
        block.start()
    machine.run(2)
    assert set(done.values()) == {1}
    kinds = Counter((index, type(work)) for index, work in done)
    for index, block in enumerate(setting.blocks):
        updates = block.learns and index < len(blocks) - 1
        assert kinds[index, RunForward] == 2 * setting.microbatches
        assert kinds[index, RunUpdate] == (2 * setting.microbatches if updates else 0)
        assert updates or index == len(blocks) - 1 or machine.most_in_flight[index] == 0
        assert kinds[index, ApplyStep] == 2


def frozen_first(*others: BlockCosts, **other: object) -> Setting:
    frozen = BlockCosts(FORWARD, 0.0, learns=False)
    return replace(uniform(1 + len(others), 4, **other), blocks=(frozen, *others))  # type: ignore[arg-type]


def test_neither_an_error_nor_a_step_holds_back_a_block_that_learns_nothing() -> None:
    learning = BlockCosts(FORWARD, UPDATE, STEP)
    outcome = simulate(frozen_first(learning, bandwidth=1e9), "staleness-0")
    assert outcome.step_seconds == pytest.approx(4 * (FORWARD + UPDATE) + STEP)  # the head never waits
    assert outcome.in_flight == (0, 0) and outcome.backward_bytes == 0
    assert simulate(frozen_first(learning, learning), "staleness-0").backward_bytes == 40


@pytest.mark.parametrize("window", [1, 3, None])
def test_a_block_that_learns_nothing_runs_ahead_by_a_window_of_outputs(window: int | None) -> None:
    slow = BlockCosts(10 * FORWARD, 10 * UPDATE)
    machine = Machine(frozen_first(slow, window=window))
    start_decoupled(machine, 50)
    machine.run(2)
    taken = 2 * 4  # by the head, and one more that it is busy with
    forwarded = round(machine.busy()[0] / FORWARD)
    assert taken + (window or 4) <= forwarded <= taken + (window or 4) + 2


def test_a_run_goes_on_from_the_step_of_the_blocks_that_learn() -> None:
    slow = BlockCosts(10 * FORWARD, 10 * UPDATE, STEP)
    trouble = Trouble(60.0, lost=(Loss(1, 20.0),), recovery=3.0)
    outcome = simulate(frozen_first(slow, slow, window=16, trouble=trouble), "staleness-0")
    whole = simulate(frozen_first(slow, slow, window=16), "staleness-0")
    lost = (
        3.0 + 2 * whole.step_seconds
    )  # what was begun is done again, and no step is counted that nobody made
    assert (60 - lost) * 0.95 <= 60 * outcome.samples_per_second / whole.samples_per_second <= 60 - 3.0 + 1


@given(
    st.sampled_from(["gpipe", "1f1b", "zero-bubble"]),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 8),
)
def test_every_order_does_each_pass_of_each_microbatch_once(
    order: str, stages: int, microbatches: int, stage: int
) -> None:
    stage = min(stage, stages - 1)
    work = list(order_of_work(order, stage, stages, microbatches))  # type: ignore[arg-type]
    kinds = ("forward", "backward", "weights") if order == "zero-bubble" else ("forward", "backward")
    assert Counter(work) == dict.fromkeys(kinds, microbatches)
    for end in range(len(work)):
        counts = Counter(work[:end])
        assert counts["weights"] <= counts["backward"] <= counts["forward"]


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(2, 6), st.integers(1, 6), st.sampled_from(SCHEDULES), st.floats(0, 0.02))
def test_more_bandwidth_is_never_slower_between_equal_blocks(
    blocks: int, microbatches: int, schedule: str, latency: float
) -> None:
    bandwidths = (25e6, 100e6, 1e9, math.inf)
    speeds = [
        simulate(
            uniform(blocks, microbatches, STEP, bandwidth=each, latency=latency), schedule
        ).samples_per_second
        for each in bandwidths
    ]
    # That takes whichever pass has its input: what comes earlier can change its order for the worse (Graham, 1969).
    slack = 0.05 if schedule == "2bw-wide" else 1e-6
    for slower, faster in pairwise(speeds):
        assert faster >= slower * (1 - slack)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_setting_gives_the_same_outcome(schedule: str) -> None:
    setting = uniform(5, 4, STEP, bandwidth=1e8, latency=0.001, cores=2, contention=0.1)
    assert simulate(setting, schedule) == simulate(setting, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_longer_look_sees_the_same_throughput(schedule: str) -> None:
    setting = uniform(12, 4, STEP, bandwidth=1e8, latency=0.001)
    steps, early = 90, 40
    machine = started(setting, schedule, steps)
    machine.run(steps - 10)
    seconds = machine.step_times[-1] - machine.step_times[early - 1]
    seconds_per_step = seconds / (steps - 10 - early)
    assert simulate(setting, schedule).step_seconds == pytest.approx(seconds_per_step, rel=0.03)


def test_cores_are_shared_fairly() -> None:
    clock, ended = Clock(), {}
    cores = Cores(clock, 2)
    for name, seconds in (("short", 1.0), ("middle", 2.0), ("long", 3.0)):
        cores.run(seconds, lambda name=name: ended.update({name: clock.now}))  # type: ignore[misc]
    clock.run(lambda: False)
    # Three on two cores: two thirds of the speed until 1.5 s, when two are left, each with a core.
    assert ended == pytest.approx({"short": 1.5, "middle": 2.5, "long": 3.5})


def test_contention_slows_what_computes_together() -> None:
    clock, ended = Clock(), []
    cores = Cores(clock, 2, contention=0.25)
    cores.run(1.0, lambda: ended.append(clock.now))
    cores.run(2.0, lambda: ended.append(clock.now))
    clock.run(lambda: False)
    assert ended == pytest.approx([1.25, 2.25])


def test_blocks_on_too_few_cores_take_the_sum_of_their_work() -> None:
    outcome = simulate(uniform(4, 4, STEP, cores=2), "staleness-4")
    assert outcome.step_seconds == pytest.approx((4 * (FORWARD + UPDATE) + STEP) * 4 / 2)


@pytest.mark.parametrize("blocks", [128, pytest.param(1024, marks=pytest.mark.slow)])
def test_many_blocks_are_simulated_in_time(blocks: int) -> None:
    """A second or so for 1,024 where nothing else runs; a minute is for machines that are busy."""
    began = time.process_time()
    for schedule in ("1f1b", "staleness-0"):
        outcome = simulate(uniform(blocks, 8, STEP, bandwidth=1e9, latency=1e-4), schedule)
        assert 0 < outcome.samples_per_second < math.inf
    assert time.process_time() - began < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"microbatches": 0}, "microbatches"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"latency": -1.0}, "latency"),
        ({"activation_bytes": (1.0,)}, "activation_bytes"),
        ({"blocks": ()}, "blocks"),
        ({"cores": 0}, "cores"),
        ({"blocks": (BlockCosts(0.0, 0.0),) * 3}, "block 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(uniform(3, 2), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dualpipe", "staleness-", "staleness--1", "staleness-x", ""])
def test_unknown_schedules_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="1f1b"):
        simulate(uniform(2, 2), name)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_block_that_is_slightly_slower_sets_the_pace_in_the_end(slow: int) -> None:
    """For a while it lives on what it ran ahead at the start; that must not be taken for its speed."""
    fast = BlockCosts(FORWARD, UPDATE, STEP)
    blocks = [fast, fast]
    blocks[slow] = replace(fast, forward=1.03 * FORWARD, update=1.03 * UPDATE)
    outcome = simulate(replace(uniform(2, 4), blocks=tuple(blocks)), "staleness-2")
    assert outcome.step_seconds == pytest.approx(4 * 1.03 * (FORWARD + UPDATE) + STEP, rel=0.005)
    assert outcome.bubble[slow] == pytest.approx(0.0, abs=0.005)
