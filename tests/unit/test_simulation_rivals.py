"""What the simulator says of pipelines that don't wait, of compressed messages, and of blocks that are slow or lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.services.lab.simulation.backpropagation import BACKPROPAGATION, TwoVersions
from lowdimfa.services.lab.simulation.machine import Machine
from lowdimfa.services.lab.simulation.names import read_name, schedule_name
from lowdimfa.services.lab.simulation.setting import BlockCosts, Setting
from lowdimfa.services.lab.simulation.simulate import simulate
from lowdimfa.services.lab.simulation.stages import Work
from lowdimfa.services.lab.simulation.trouble import (
    Loss,
    Pace,
    Slowdown,
    Trouble,
    draw_losses,
    draw_slowdowns,
    uneven,
)

FORWARD, UPDATE, STEP = 0.010, 0.020, 0.004
MICROBATCH, ACTIVATION = 8, 4096.0
SCHEDULES = [*BACKPROPAGATION, *map(schedule_name, (0, 1, 3))]


def uniform(blocks: int, microbatches: int, step: float = 0.0, **other: object) -> Setting:
    return Setting(
        blocks=(BlockCosts(FORWARD, UPDATE, step),) * blocks,
        microbatches=microbatches,
        microbatch_size=MICROBATCH,
        activation_bytes=(ACTIVATION,) * (blocks - 1),
        error_bytes=40.0,
        **other,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["2bw", "2bw-wide"])
@pytest.mark.parametrize(("blocks", "microbatches"), [(1, 1), (2, 4), (4, 4), (8, 16)])
def test_2bw_never_waits_on_free_links(name: str, blocks: int, microbatches: int) -> None:
    outcome = simulate(uniform(blocks, microbatches, STEP), name)
    assert outcome.step_seconds == pytest.approx(microbatches * (FORWARD + UPDATE) + STEP)
    assert max(outcome.bubble) == pytest.approx(0.0, abs=1e-9)
    assert name != "2bw" or outcome.in_flight == tuple(range(blocks, 0, -1))


@pytest.mark.parametrize("name", ["2bw", "2bw-wide", "staleness-3"])
@pytest.mark.parametrize("slow", [0, 2, 3])
def test_without_a_flush_the_slowest_block_sets_the_pace(name: str, slow: int) -> None:
    setting = uniform(4, 8)
    blocks = [*setting.blocks]
    blocks[slow] = BlockCosts(2 * FORWARD, 2 * UPDATE)
    outcome = simulate(replace(setting, blocks=tuple(blocks)), name)
    assert outcome.step_seconds == pytest.approx(8 * 2 * (FORWARD + UPDATE), rel=0.01)


@pytest.mark.parametrize("name", ["2bw-wide", "2bw-wide+int8"])
def test_a_full_link_carries_gradients_and_activations_one_after_the_other(name: str) -> None:
    """A stage in the middle sends both, in a format that takes as many times fewer bytes."""
    sent = 8 * MICROBATCH * ACTIVATION / read_name(name).fewer
    outcome = simulate(uniform(4, 8, bandwidth=5e5), name)
    assert outcome.step_seconds == pytest.approx(8 * 2 * sent / 5e5, rel=0.02)
    assert outcome.backward_bytes == pytest.approx(3 * ACTIVATION / read_name(name).fewer)


def test_2bw_as_published_waits_for_latency_and_more_in_flight_hide_it() -> None:
    """K micro-batches are under way in a round of K forwards, K backwards and 2 (K - 1) messages."""
    setting = uniform(4, 32, latency=0.010)
    around = 4 * (FORWARD + UPDATE) + 6 * 0.010
    assert simulate(setting, "2bw").step_seconds == pytest.approx(32 * around / 4, rel=0.01)
    assert simulate(setting, "2bw-wide").step_seconds == pytest.approx(32 * (FORWARD + UPDATE))


@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.floats(0, 0.05))
def test_2bw_computes_every_step_with_the_weights_of_the_step_before(
    blocks: int, microbatches: int, wide: bool, latency: float
) -> None:
    """In every stage alike: so two versions are enough, and gradients are exact for what the forward pass saw."""
    made: list[Watched] = []

    class Watched(TwoVersions):
        def next_work(self) -> Work | str | None:  # type: ignore[override]
            work = super().next_work()
            if work == "forward":
                step = self._forwards // microbatches
                assert step - 1 <= self._applied <= step
            return work

    Watched.wide = wide
    machine = Machine(uniform(blocks, microbatches, STEP, latency=latency))
    made += [Watched(machine, index, 0, 4, made) for index in range(blocks)]
    for stage in made:
        stage.go_on()
    machine.run(4)
    assert machine.steps == [4] * blocks and machine.in_flight == [0] * blocks


@pytest.mark.parametrize("base", ["1f1b", "2bw", "staleness-1"])
def test_a_format_is_fewer_bytes_and_maybe_time_to_code(base: str) -> None:
    """One micro-batch through two blocks: what is sent both ways is coded and decoded, the broadcast isn't."""
    setting = uniform(2, 1, latency=0.003, bandwidth=1e7)
    quarter = replace(setting, activation_bytes=(ACTIVATION / 4,))
    assert simulate(setting, f"{base}+int8").step_seconds == pytest.approx(
        simulate(quarter, base).step_seconds
    )
    assert simulate(setting, f"{base}+x4") == replace(
        simulate(setting, f"{base}+int8"), schedule=f"{base}+x4"
    )
    if base == "1f1b":
        coded = simulate(replace(setting, coding=0.001), "1f1b+int8").step_seconds
        assert coded == pytest.approx(simulate(quarter, "1f1b").step_seconds + 4 * 0.001)
    if base == "staleness-1":
        coded = simulate(replace(setting, coding=0.001), "staleness-0+int8").step_seconds
        assert coded == pytest.approx(simulate(quarter, "staleness-0").step_seconds + 2 * 0.001)


@pytest.mark.parametrize("name", ["2bw+", "1f1b+int3", "1f1b+x", "1f1b+x0.5", "staleness-1+xnan"])
def test_unknown_formats_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="int8"):
        read_name(name)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(1, 10)), max_size=4),
    st.lists(st.floats(0, 3), min_size=1, max_size=6),
)
def test_a_slow_block_does_the_same_work(drawn: list[tuple[float, float, float]], work: list[float]) -> None:
    """Adding up its speed over the time that a piece took gives the piece."""
    slow, now = [], 0.0
    for gap, seconds, factor in drawn:
        slow.append(Slowdown(0, now + gap, seconds, factor))
        now += gap + seconds
    pace, begin = Pace(slow), 0.0
    for piece in work:
        end = begin + pace.seconds(begin, piece)
        held = [
            (max(0.0, min(end, one.begin + one.seconds) - max(begin, one.begin)), one.factor) for one in slow
        ]
        done = end - begin - sum(seconds * (1 - 1 / factor) for seconds, factor in held)
        assert done == pytest.approx(piece, abs=1e-6)
        begin = end


def test_what_is_drawn_comes_from_the_seed() -> None:
    assert uneven(5, 0.5, 1) == uneven(8, 0.5, 1)[:5] != uneven(5, 0.5, 2)
    assert all(1 <= factor <= 1.5 for factor in uneven(100, 0.5, 0))
    slow = draw_slowdowns(50, 1000.0, 90.0, 10.0, 3.0, 0)
    assert len(slow) == pytest.approx(50 * 1000 / 100, rel=0.2)
    assert (
        slow
        == draw_slowdowns(50, 1000.0, 90.0, 10.0, 3.0, 0)
        != draw_slowdowns(50, 1000.0, 90.0, 10.0, 3.0, 1)
    )
    assert len(draw_losses(50, 1000.0, 100.0, 0)) == pytest.approx(500, rel=0.2)


@pytest.mark.parametrize("name", ["1f1b", "2bw", "staleness-1"])
def test_a_straggler_holds_up_no_longer_than_it_is_slow(name: str) -> None:
    """Meanwhile the run is as fast as if the block had always been like that."""
    setting = uniform(3, 4)
    always = replace(
        setting, blocks=(setting.blocks[0], BlockCosts(3 * FORWARD, 3 * UPDATE), setting.blocks[2])
    )
    share = simulate(setting, name).step_seconds / simulate(always, name).step_seconds
    rates = [
        simulate(replace(setting, trouble=Trouble(15.0, slow)), name).samples_per_second
        for slow in ((), (Slowdown(1, 2.0, 6.0, 3.0),))
    ]
    assert rates[1] / rates[0] == pytest.approx((9 + 6 * share) / 15, rel=0.03)


def test_a_loss_sends_pipelines_back_to_their_checkpoint() -> None:
    step = (3 + 4) * (FORWARD + UPDATE)
    trouble = Trouble(60.7 * step, lost=(Loss(2, 25.5 * step),), recovery=2 * step, checkpoint_every=10)
    for name in ("gpipe", "1f1b"):
        outcome = simulate(uniform(4, 4, trouble=trouble), name)
        assert outcome.step_seconds * (20 + 33) == pytest.approx(trouble.seconds), name


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_loss_costs_this_method_the_time_until_the_block_is_back(lost: int) -> None:
    """And what had been begun, which is done again; with ``rejoin: False`` the steps since the checkpoint, too."""
    setting, seconds, recovery = uniform(4, 4), 15.0, 3.0
    trouble = Trouble(seconds, lost=(Loss(lost, 7.0),), recovery=recovery, checkpoint_every=1000)
    rates = [
        simulate(replace(setting, trouble=one), "staleness-1").samples_per_second
        for one in (Trouble(seconds), trouble, replace(trouble, rejoin=False))
    ]
    assert (seconds - recovery - 0.4) / seconds <= rates[1] / rates[0] <= (seconds - recovery + 0.4) / seconds
    assert rates[2] / rates[0] == pytest.approx((seconds - 7 - recovery) / seconds, abs=0.03)


troubles = st.builds(
    Trouble,
    st.just(4.0),
    lost=st.lists(st.builds(Loss, st.integers(0, 3), st.floats(0, 4)), max_size=5).map(tuple),
    slow=st.lists(
        st.builds(Slowdown, st.integers(0, 3), st.floats(0, 4), st.floats(0.1, 2), st.floats(1, 5)),
        max_size=3,
    ).map(tuple),
    recovery=st.sampled_from([0.0, 0.01, 0.7]),
    checkpoint_every=st.integers(1, 9),
    rejoin=st.booleans(),
)


@example(
    Trouble(4.0, (Slowdown(2, 0.0, 2.0, 2.0), Slowdown(2, 0.0, 1.0, 2.0)), (Loss(0, 1.0),), 0.0, 1, False),
    "gpipe",
    0.0,
    2e6,
)
@example(Trouble(4.0, lost=(Loss(2, 0.5),), recovery=0.0, checkpoint_every=1), "staleness-0", 0.0, 2e6)
@given(
    troubles, st.sampled_from(SCHEDULES), st.sampled_from([0.0, 0.005]), st.sampled_from([float("inf"), 2e6])
)
def test_whatever_goes_wrong_the_run_goes_on(
    trouble: Trouble, name: str, latency: float, bandwidth: float
) -> None:
    """Also when blocks are lost while others come to rest: never faster than undisturbed, and it never stands still."""
    setting = uniform(4, 3, STEP, latency=latency, bandwidth=bandwidth)
    trouble = replace(trouble, slow=tuple(sorted(trouble.slow, key=lambda one: one.begin)))
    disturbed = simulate(replace(setting, trouble=replace(trouble, seconds=4.0)), name)
    calm = simulate(replace(setting, trouble=Trouble(4.0)), name)
    assert disturbed.samples_per_second <= calm.samples_per_second * 1.02
    assert all(-1e-9 <= idle <= 1 for idle in disturbed.bubble)
    # The last loss is over after 4.7 s at most; a step takes at most 5 times as long.
    longer = simulate(replace(setting, trouble=replace(trouble, seconds=12.0)), name)
    assert longer.samples_per_second > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0.0}, "seconds"),
        ({"recovery": -1.0}, "recovery"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"lost": (Loss(3, 1.0),)}, "blocks from 0 to 2"),
        ({"slow": (Slowdown(0, 1.0, 1.0, 0.5),)}, "factor of at least 1"),
    ],
)
def test_troubles_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        uniform(3, 2, trouble=replace(Trouble(10.0), **change))  # type: ignore[arg-type]


def test_losses_need_cores_of_the_blocks_own() -> None:
    with pytest.raises(InputError, match="cores"):
        uniform(3, 2, trouble=Trouble(10.0), cores=2)
