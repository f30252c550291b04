"""The faults of a drill: always ones that a run is made to survive, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdimfa.errors import InputError
from lowdimfa.services.lab.drill.drill import Drill, DrillRequest
from lowdimfa.services.lab.drill.plan import HARMLESS, KINDS, Kind, Schedule, draw, parse_kinds
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.spec.faults import TIMED_KINDS, WIRE_KINDS


def made(steps: int = 1000, blocks: int = 4, **run: Any) -> Specification:
    return parse_specification(
        {
            "model": {"factory": "users_own:model", "blocks": blocks},
            "data": {"factory": "lowdimfa.data:digits"},
            "train": {"steps": steps},
            "run": {"on_failure": "restart"} | run,
        },
        "the test",
    )


@st.composite
def drills(draws: st.DrawFn) -> tuple[Specification, int, list[Kind], int]:
    blocks, steps = draws(st.integers(1, 6)), draws(st.integers(40, 3000))
    every = draws(st.integers(0, steps))
    kinds = [kind for kind in KINDS if blocks > 1 or kind not in WIRE_KINDS]
    chosen = draws(st.lists(st.sampled_from(kinds), min_size=1, unique=True))
    liveness = draws(st.floats(0.1, 100))
    specification = made(steps, blocks, checkpoint_every=every, liveness_seconds=liveness)
    return specification, steps, chosen, draws(st.integers(1, 30))


def drawn(seed: str, drill: tuple[Specification, int, list[Kind], int]) -> Schedule | None:
    try:
        return draw(seed, *drill)
    except InputError as error:
        assert error.message.startswith("--faults: ")
        return None


@given(st.text(), drills())
def test_every_schedule_is_one_that_the_run_can_survive(
    seed: str, drill: tuple[Specification, int, list[Kind], int]
) -> None:
    specification, steps, kinds, count = drill
    schedule = drawn(seed, drill)
    if schedule is None:  # only where kinds are all bounded
        assert (count > 1 and set(kinds) <= {"nan", "trainer", "disk_full"}) or set(kinds) == {"disk_full"}
        return
    whole = schedule.applied_to(specification)
    assert whole.drill.faults == list(schedule.faults)
    every = [fault.step for fault in schedule.faults] + list(schedule.trainer_steps)
    assert len(every) == len(set(every)) == count
    assert all(0.05 * steps <= step < 0.95 * steps for step in every)
    dealt = Counter[str](fault.kind for fault in schedule.faults)
    dealt["trainer"] = len(schedule.trainer_steps)
    assert set(+dealt) <= set(kinds)
    assert dealt["nan"] <= 1 and dealt["trainer"] <= 2
    unbounded = [dealt[kind] for kind in kinds if kind not in ("nan", "trainer", "disk_full")]
    assert max(unbounded, default=0) - min(unbounded, default=0) <= 1
    costly = sum(dealt[kind] for kind in kinds if kind not in HARMLESS)
    assert whole.run.max_recoveries >= 2 * costly
    liveness = specification.run.liveness_seconds
    for fault in schedule.faults:
        if fault.kind in TIMED_KINDS:
            assert fault.seconds > liveness if fault.kind == "hang" else fault.seconds < liveness / 2


@given(st.text(), drills())
def test_the_same_seed_draws_the_same(seed: str, drill: tuple[Specification, int, list[Kind], int]) -> None:
    assert drawn(seed, drill) == drawn(seed, drill)


@given(st.text(), drills())
def test_no_disk_is_full_at_the_last_checkpoint_or_twice_at_one(
    seed: str, drill: tuple[Specification, int, list[Kind], int]
) -> None:
    specification, steps, _, _ = drill
    schedule = drawn(seed, drill)
    every = specification.run.checkpoint_every
    full = [fault.step for fault in (schedule.faults if schedule else ()) if fault.kind == "disk_full"]
    failing = [-(-step // every) * every for step in full]
    assert len(set(failing)) == len(failing)
    assert all(step < steps for step in failing)


def test_rounds_differ_and_the_deck_is_dealt_evenly() -> None:
    specification = made(checkpoint_every=100)
    one, other = (draw(seed, specification, 1000, KINDS, 20) for seed in ("0, round 1", "0, round 2"))
    assert one != other
    assert {fault.kind for fault in one.faults} == set(KINDS) - {"trainer"}
    assert one.trainer_steps


@pytest.mark.parametrize(
    ("specification", "kinds", "count", "words"),
    [
        (made(20), KINDS, 19, "--faults: found 19 in a run of 20 steps; expected at most 18"),
        (made(), ("nan", "trainer"), 4, "expected at most 1 of kind nan and 2 of kind trainer"),
        (made(), ("disk_full",), 1, "run.checkpoint_every makes room for disk_full"),
        (made(blocks=1), ("crash", "drop"), 4, "--kinds: found drop; expected model.blocks of at least 2"),
    ],
)
def test_what_does_not_fit_is_refused(
    specification: Specification, kinds: tuple[Kind, ...], count: int, words: str
) -> None:
    with pytest.raises(InputError) as error:
        draw("0", specification, specification.train.steps or 0, kinds, count)
    assert words in error.value.message


def test_kinds_are_read_from_an_option() -> None:
    assert parse_kinds(None, trainer=True) == KINDS
    assert parse_kinds(None, trainer=False) == KINDS[:-1]
    assert parse_kinds("trainer, crash", trainer=True) == ("crash", "trainer")
    with pytest.raises(InputError, match="--kinds: found 'trainer' with --address"):
        parse_kinds("trainer", trainer=False)
    with pytest.raises(InputError, match="--kinds: found 'crush'; expected some of crash, hang"):
        parse_kinds("crush", trainer=True)


def test_a_policy_that_fails_is_refused_unless_nothing_is_lost(tmp_path: Any) -> None:
    def request(*kinds: Kind) -> DrillRequest:
        specification = made(on_failure="fail", checkpoint_every=100)
        return DrillRequest(specification, tmp_path / "drill", tmp_path, None, 0, 4, 1, 0.0, kinds, 0.02)

    with pytest.raises(InputError) as error:
        Drill(request("slow", "crash"))
    assert "faults of kind crash" in error.value.message and "Add --on-failure rejoin" in error.value.message
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "thing").touch()
    with pytest.raises(InputError, match="a folder with something in it"):
        Drill(request("slow"))


def test_a_first_block_that_learns_nothing_loses_no_messages(tmp_path: Path) -> None:
    """It gets none: such a fault would not happen, and a round of no others would not be passed."""
    model = {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 3, "classes": 10},
    }
    plain = made(steps=400, blocks=2).model_dump()
    plain["model"] |= model | {"blocks": ["2"], "frozen": ["0.*", "1.*"]}
    specification = parse_specification(plain, "the test")
    kinds: tuple[Kind, ...] = (*sorted(WIRE_KINDS), "slow")
    request = DrillRequest(specification, tmp_path / "drill", tmp_path, None, 0, 40, 1, 0.0, kinds, 0.02)
    frozen, learning = Drill(request).schedule(1), draw("0", specification, 400, kinds, 40)
    for schedule, expected in ((frozen, {1}), (learning, {0, 1})):
        assert {fault.block for fault in schedule.faults if fault.kind in WIRE_KINDS} == expected
        assert {fault.block for fault in schedule.faults if fault.kind == "slow"} == {0, 1}


def test_a_baseline_has_nothing_to_drill(tmp_path: Path) -> None:
    """And there is no --engine to run it with."""
    plain = made().model_dump() | {"feedback": {"form": "backprop"}}
    specification = parse_specification(plain, "the test")
    with pytest.raises(InputError, match=r"feedback\.form: found 'backprop'; expected 'broadcast'"):
        Drill(DrillRequest(specification, tmp_path / "drill", tmp_path, None, 0, 4, 1, 0.0, ("crash",), 0.02))
