"""What a drill concludes: from events and notes, from samples of processes, from two results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowdimfa.services.lab.drill.compare import Comparison, compare
from lowdimfa.services.lab.drill.growth import Growth
from lowdimfa.services.lab.drill.judge import happened_in, judge, outages
from lowdimfa.services.lab.drill.plan import Schedule
from lowdimfa.services.lab.drill.report import round_lines, round_rows, summary, summary_rows
from lowdimfa.services.lab.drill.round import Round
from lowdimfa.services.run.checkpoint import BlockState, CheckpointStore, write_block
from lowdimfa.services.spec.faults import Fault
from lowdimfa.services.trainer.results import Result

MIB = 2**20


def told(*moments: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"event": event, "time": time, "reason": f"at {time:g}"} for event, time in moments]


def fault(kind: Any, step: int, block: int = 0) -> Fault:
    return Fault(kind=kind, block=block, step=step, seconds=1.0 if kind in ("hang", "slow") else 0.0)


def test_outages_end_when_training_goes_on() -> None:
    found = outages(
        told(
            ("started", 0),
            ("recovering", 10),
            ("recovering", 12),  # more was lost meanwhile
            ("recovered", 15),
            ("recovering", 20),  # the trainer: `started` comes before `recovered`
            ("started", 29),
            ("recovered", 30),
            ("recovering", 40),
        )
    )
    assert [(outage.begin, outage.end, outage.recoveries) for outage in found] == [
        (10, 15, 2),
        (20, 29, 1),
        (40, None, 1),
    ]
    assert [outage.seconds for outage in found] == [5, 9, None]
    assert outages([]) == []


def test_each_fault_gets_its_outage() -> None:
    schedule = Schedule(
        (fault("crash", 10), fault("slow", 20), fault("drop", 30), fault("hang", 40), fault("crash", 50, 1)),
        (60,),
    )
    found = outages(
        told(
            *(("recovering", 101.0), ("recovered", 105.0)),
            *(("recovering", 131.0), ("recovered", 133.0)),
            *(("recovering", 148.0), ("recovered", 155.0)),
            *(("recovering", 170.0), ("recovered", 171.0)),
            *(("recovering", 180.5), ("started", 190.0)),
        )
    )
    fates, beyond = judge(schedule, {0: 100.0, 1: 120.0, 2: 130.0, 3: 140.0}, [180.0], found, 10.0)
    assert [(fate.kind, fate.verdict, fate.noticed_seconds, fate.outage_seconds) for fate in fates] == [
        ("crash", "recovered", 1.0, 4.0),
        ("slow", "harmless", None, None),
        ("drop", "recovered", 1.0, 2.0),  # it was not healed by repetition alone
        ("hang", "recovered", 8.0, 7.0),
        ("crash", "not reached", None, None),
        ("trainer", "recovered", 0.5, 9.5),
    ]
    assert beyond == 1  # the one at 170


def test_what_is_lost_without_anybody_noticing_is_not_recovered() -> None:
    schedule = Schedule((fault("crash", 10), fault("crash", 20)), ())
    found = outages(told(("recovering", 101), ("recovered", 105), ("recovering", 121)))
    fates, _ = judge(schedule, {0: 100.0, 1: 120.0}, [], found, 10.0)
    assert [fate.verdict for fate in fates] == ["recovered", "not recovered"]
    fates, _ = judge(schedule, {0: 100.0, 1: 120.0}, [], [], 10.0)
    assert [fate.verdict for fate in fates] == ["not recovered"] * 2


def test_a_hang_that_nobody_noticed_is_not_recovered_by_what_a_later_loss_cost() -> None:
    schedule = Schedule((fault("hang", 10), fault("crash", 90, 1)), ())
    found = outages(told(("recovering", 1000.1), ("recovered", 1010)))
    fates, beyond = judge(schedule, {0: 100.0, 1: 1000.0}, [], found, 10.0)
    assert [fate.verdict for fate in fates] == ["not recovered", "recovered"] and beyond == 0
    fates, beyond = judge(schedule, {0: 995.0, 1: 1000.0}, [], found, 10.0)
    assert [fate.verdict for fate in fates] == ["recovered"] * 2, "two losses may share a recovery"


@given(st.lists(st.floats(0.1, 50), max_size=30), st.data())
def test_no_recovery_is_unexplained_where_each_loss_has_its_own(
    gaps: list[float], data: st.DataObject
) -> None:
    """Property: losses one after the other, each with its outage."""
    now, happened, events = 0.0, {}, []
    faults = []
    for index, gap in enumerate(gaps):
        now += gap
        happened[index] = now
        faults.append(fault(data.draw(st.sampled_from(["crash", "nan", "drop", "slow"])), index))
        if faults[-1].kind in ("crash", "nan"):
            events += [("recovering", now + gap / 4), ("recovered", now + gap / 2)]
            now += gap / 2
    fates, beyond = judge(Schedule(tuple(faults), ()), happened, [], outages(told(*events)), 10.0)
    assert beyond == 0
    assert {fate.verdict for fate in fates if fate.kind in ("crash", "nan")} <= {"recovered"}
    assert {fate.verdict for fate in fates if fate.kind in ("drop", "slow")} <= {"harmless"}


def test_what_happened_is_read_from_the_notes(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "1.json").write_text(json.dumps(fault("crash", 1).model_dump() | {"time": 12.5}))
    (tmp_path / "faults" / "2.json").write_text("")  # killed while it was written
    times = happened_in(tmp_path, 4)
    assert times.keys() == {1, 2}
    assert times[1] == 12.5


def result(
    path: Path, tensors: dict[str, Tensor], accuracy: float | None = None, loss: float = 1.0
) -> Result:
    store = CheckpointStore(path)
    entry = write_block(store.begin(5), BlockState(0, ["0"], tensors, {}))
    store.commit(5, [entry], {})
    metrics = {"steps": 5, "test_accuracy": accuracy, "test_loss": loss}
    return Result(metrics, path, path, None)


def test_tensors_are_compared_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"model/a": torch.tensor([1.0, float("nan"), 0.0]), "optimizer/a/step": torch.tensor(3.0)}
    one = result(tmp_path / "one", tensors)
    assert compare(one, result(tmp_path / "same", tensors), True, 0.0) == Comparison(
        True, "all 2 tensors equal bit for bit"
    )
    others: list[dict[str, Tensor]] = [
        {"model/a": tensors["model/a"] + 0.0},  # one is missing
        tensors | {"model/a": torch.tensor([1.0, float("nan"), -0.0])},
        tensors | {"model/a": tensors["model/a"].double()},
        tensors | {"model/a": tensors["model/a"].reshape(3, 1)},
        tensors | {"model/b": torch.zeros(1)},
    ]
    for number, other in enumerate(others):
        found = compare(one, result(tmp_path / str(number), other), True, 0.0)
        assert not found.holds and found.words.startswith("1 of ")


def test_with_rejoins_the_accuracy_or_the_loss_is_compared(tmp_path: Path) -> None:
    nothing = {"model/a": torch.zeros(1)}
    made = [
        result(tmp_path / str(number), nothing, accuracy, loss)
        for number, (accuracy, loss) in enumerate(
            [(0.9, 1.0), (0.89, 9.0), (0.87, 1.0), (None, 1.015), (None, 1.2)]
        )
    ]
    reference, close, worse, good_loss, bad_loss = made
    assert compare(reference, close, False, 0.02).holds
    assert not compare(reference, worse, False, 0.02).holds
    assert compare(worse, reference, False, 0.0).holds  # better is well
    assert compare(reference, good_loss, False, 0.02).holds
    assert not compare(reference, bad_loss, False, 0.02).holds


def grown(descriptors: int) -> Growth:
    return Growth("trainer", 99, 5, (30, 30), (50, descriptors), (400 * MIB, 400 * MIB))


def ended(**changes: Any) -> Round:
    schedule = Schedule((fault("crash", 10, 1), fault("slow", 20)), ())
    found = outages(told(("recovering", 101), ("recovered", 105.5)))
    fates, beyond = judge(schedule, {0: 100.0}, [], found, 10.0)
    fields: dict[str, Any] = {
        "number": 1,
        "run_dir": Path("/runs/round-1"),
        "fates": fates,
        "outages": found,
        "beyond": beyond,
        "comparison": Comparison(True, "all 2 tensors equal bit for bit"),
        "failure": "",
        "processes": 5,
        "unwatched": 0,
        "growths": [grown(50)],
        "left": [],
        "seconds": 60.0,
    }
    return Round(**fields | changes)


def test_a_round_in_which_nothing_happened_is_not_passed() -> None:
    fates, _ = judge(Schedule((fault("drop", 10),), (20,)), {}, [], [], 10.0)
    assert ended(fates=fates).troubles == ["none of its faults happened, so that nothing was drilled"]
    assert not ended().troubles, "one of two is enough"


def test_a_round_is_told_in_a_table_and_a_drill_in_a_few_lines() -> None:
    assert round_rows(ended())[1:] == [
        ("crash", "1", "10", "yes", "1.0 s", "4.5 s", "recovered"),
        ("slow", "0", "20", "no", "-", "-", "not reached"),
    ]
    assert round_lines(ended())[:3] == [
        "round 1: 1 recovery, each by a fault; /runs/round-1",
        "result: all 2 tensors equal bit for bit: holds",
        "processes: at most 5 at a time",
    ]
    assert summary_rows([ended(), ended()]) == [
        ("rounds", "2"),
        ("faults", "2 of 4 happened"),
        ("recovered", "2 recoveries, each by a fault, median 4.5 s, longest 4.5 s"),
        ("result holds", "yes"),
        ("leaks", "none"),
        ("passed", "yes"),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"failure": "no room", "comparison": None}, "the run failed: no room"),
        (
            {"comparison": Comparison(False, "2 of 2 tensors differ")},
            "the result does not hold: 2 of 2 tensors",
        ),
        ({"left": ["port 1234 (process 99)"]}, "left: port 1234"),
        ({"growths": [grown(90)]}, "descriptors of trainer"),
    ],
)
def test_every_trouble_fails_a_round_and_the_drill(changes: dict[str, Any], words: str) -> None:
    entry = ended(**changes)
    assert len(entry.troubles) == 1 and words in entry.troubles[0]
    assert f"not passed: {entry.troubles[0]}" in round_lines(entry)
    assert not summary([ended(), entry])["passed"]
