"""Real drills: a run whose processes are killed more than twenty times, and one with every kind of fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import DIGITS, Outcome, refused, settings, started
from forks import Forks

pytestmark = [
    pytest.mark.timeout(3600),  # a drill that hangs is silent, and is ended for that
    pytest.mark.xdist_group("ray"),
]


def drill(run_dir: Path, *arguments: object, **values: object) -> Outcome:
    overrides = settings(
        train__epochs=None,
        run__evaluate_every_epochs=0,
        run__liveness_seconds=10,
        run__tensorboard=False,
        **values,
    )
    with started("drill", DIGITS, "--run-dir", run_dir, "--format", "json", *arguments, *overrides) as going:
        return going.end()


def passed(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check that a drill of one round was passed; return its round and its summary."""
    assert outcome.code == 0, (outcome.stderr, outcome.events[-2:])
    (entry,), (told,) = outcome.of("round_ended"), outcome.of("drilled")
    assert outcome.events[-2:] == [entry, told]
    assert told["passed"] and told["result_holds"] and told["leaks"] == [] == entry["troubles"]
    assert (
        told["recoveries"]
        == entry["recoveries"]
        == len([event for event in outcome.of("recovering") if event["part"] == "round 1"])
    )
    assert all(fate["verdict"] != "not recovered" for fate in entry["faults"])
    return entry, told


@pytest.mark.slow
def test_a_run_survives_more_than_twenty_kills_with_rejoin(tmp_path: Path) -> None:
    arguments = ("--on-failure", "rejoin", "--kinds", "crash", "--faults", 24)
    outcome = drill(tmp_path / "drill", *arguments, train__steps=1500, run__checkpoint_every=300)
    entry, told = passed(outcome)
    assert "test accuracy" in entry["result"]["words"]
    killed = Counter(fate["block"] for fate in entry["faults"] if fate["happened"] is not None)
    assert killed.total() == told["happened"] >= 20
    assert killed.keys() == {0, 1, 2, 3}, "the head is block 3"
    assert told["recoveries"] >= 20
    assert told["recovery_seconds_longest"] is not None
    (trainer,) = (grown for grown in entry["growth"] if grown["role"] == "trainer")
    assert trainer["recoveries"] >= 15, "it has lived through nearly all of them, so leaks would have shown"
    for name in ("threads", "descriptors", "memory"):
        assert trainer[name][1] <= 1.1 * trainer[name][0] + (64 * 2**20 if name == "memory" else 10)


@pytest.mark.slow
def test_every_kind_of_fault_with_restart_leaves_every_bit_as_it_was(tmp_path: Path) -> None:
    outcome = drill(tmp_path / "drill", "--on-failure", "restart", train__steps=600, run__checkpoint_every=60)
    entry, told = passed(outcome)
    assert entry["result"]["words"].endswith("tensors equal bit for bit")
    kinds = {fate["kind"] for fate in entry["faults"] if fate["happened"] is not None}
    assert {"crash", "hang", "nan", "disk_full", "trainer"} <= kinds
    assert kinds & {"drop", "duplicate", "reorder", "corrupt"}
    assert {fate["verdict"] for fate in entry["faults"]} <= {"recovered", "harmless", "not reached"}
    assert outcome.of("checkpoint_failed")
    assert told["happened"] >= 10


def test_what_a_drill_can_not_do_is_refused(forks: Forks, tmp_path: Path) -> None:
    refused(
        forks.run("drill", DIGITS, "--run-dir", tmp_path / "drill"),
        "run.on_failure: found 'fail'",
        "--on-failure rejoin or restart",
    )
    refused(forks.run("drill", DIGITS, "--kinds", "crush"), "--kinds: found 'crush'")
    assert not (tmp_path / "drill").exists()
