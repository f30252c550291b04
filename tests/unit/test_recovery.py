"""The training loop through losses: with any of them a run is complete, or its end says why."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lossy_engine import ALIGN, EVALUATE, SAVE, STEPS, LossyEngine, drive, events, of

from lowdimfa.callback import Callback
from lowdimfa.errors import (
    BlockLostError,
    DiskFullError,
    HandshakeError,
    InputError,
    LowdimfaError,
    NotFiniteError,
    PeerError,
    ProtocolError,
    ResourceError,
    StoppedError,
)
from lowdimfa.head import Evaluation
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.trainer import loop
from lowdimfa.services.trainer.engine import Recovered
from lowdimfa.services.trainer.stopping import StopRequest

METHODS = ("run_steps", "evaluate", "align", "save")


def lost(text: str = "block 1 was lost") -> BlockLostError:
    return BlockLostError(text, block=1)


def course(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of what a run came to, without those that recoveries took back."""
    kept: list[dict[str, Any]] = []
    for event in found:
        if event["event"] == "recovered":
            kept = [earlier for earlier in kept if earlier["step"] <= event["step"]]
        elif event["event"] in ("progress", "evaluated", "alignment", "checkpoint"):
            kept.append(event)
    return kept


def assert_complete(
    found: list[dict[str, Any]],
    engine: LossyEngine,
    run_dir: Path,
    evaluate: int = EVALUATE,
    save: int = SAVE,
) -> None:
    """Everything that is due has been done in the course that the run came to, and its end says what that is."""
    kept = course(found)
    assert [step for _, step in of(kept, "progress")] == list(range(1, STEPS + 1))
    for kind, period in (("evaluated", evaluate), ("checkpoint", save), ("alignment", ALIGN)):
        steps = {step for _, step in of(kept, kind)}
        assert steps >= set(range(period, STEPS + 1, period))
        # A stop leaves a checkpoint wherever it comes.
        assert kind == "checkpoint" or len(steps) == STEPS // period
    finished = found[-1]
    assert (finished["event"], finished["steps"], finished["samples"]) == ("finished", STEPS, STEPS * 375)
    assert finished["test_loss"] == engine.value
    newest = CheckpointStore(run_dir).newest_good().manifest
    assert newest is not None and newest.step == STEPS
    assert float(newest.tensors(lambda name: True)["value"]) == engine.value


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("start", 0),
        *(("run_steps", step) for step in (0, 5, 11)),
        *(("evaluate", step) for step in (4, 12)),
        ("align", 5),
        *(("save", step) for step in (3, 12)),
    ],
)
def test_a_loss_anywhere_ends_no_run(policy: str, method: str, step: int, tmp_path: Path) -> None:
    engine = LossyEngine([(method, step, lost())])
    found = drive(engine, tmp_path, on_failure=policy)
    assert_complete(found, engine, tmp_path)
    (recovering,) = (event for event in found if event["event"] == "recovering")
    expected = {
        "lost": "blocks",
        "policy": policy,
        "blocks": [1],
        "reason": "block 1 was lost",
        "step": step,
        "recovery": 1,
    }
    assert expected.items() <= recovering.items()
    recovered = [event for event in found if event["event"] == "recovered"]
    if method == "start":  # the run's beginning says that it goes on
        assert recovered == [] and [event["event"] for event in found[:2]] == ["recovering", "started"]
        return
    (event,) = recovered
    back = (step - 1) // SAVE * SAVE if method == "save" else step // SAVE * SAVE
    # At a boundary of several periods the evaluation comes before the checkpoint.
    back = back - SAVE * (method in ("evaluate", "align") and step % SAVE == 0)
    assert event["step"] == (max(back, 0) if policy == "restart" else step)
    assert engine.checkpoints == [max(back, 0) or None]
    assert (event["missed"], event["pids"], event["blocks"]) == ({}, {"blocks": [2, 4]}, [1])
    assert 0 <= event["seconds"] < 60
    assert found.index(recovering) < found.index(event)


LOSSES = st.lists(
    st.tuples(
        st.sampled_from([*METHODS, "recover"]),
        st.integers(0, STEPS),
        st.sampled_from([lost(), PeerError("no connection"), ProtocolError("garbled")]),
    ),
    max_size=8,
)


@given(
    policy=st.sampled_from(["restart", "rejoin"]), script=LOSSES, missed=st.booleans(), periodic=st.booleans()
)
@example(policy="restart", script=[("save", STEPS, lost())], missed=False, periodic=False)
@example(policy="rejoin", script=[("save", STEPS, lost())], missed=True, periodic=False)
def test_any_losses_leave_a_complete_run(
    policy: str, script: list[tuple[str, int, LowdimfaError]], missed: bool, periodic: bool
) -> None:
    with TemporaryDirectory() as folder:
        engine = LossyEngine(script)
        engine.missed = {1: 3} if missed and policy == "rejoin" else {}
        # Without periods that end with the run, its last evaluation and checkpoint are what ends it.
        evaluate, save = (EVALUATE, SAVE) if periodic else (STEPS, STEPS - 1)
        epochs = int(periodic)
        found = drive(
            engine, Path(folder), on_failure=policy, evaluate_every_epochs=epochs, checkpoint_every=save
        )
        assert_complete(found, engine, Path(folder), evaluate, save)
    begun = [event for event in found if event["event"] == "recovering"]
    assert [event["recovery"] for event in begun] == list(range(1, len(begun) + 1))
    assert len(begun) == len(script) - len(engine.script)
    assert all(event["missed"] in ({}, {"1": 3}) for event in found if event["event"] == "recovered")


@pytest.mark.parametrize("method", METHODS)
def test_without_a_policy_the_first_loss_ends_the_run(method: str, tmp_path: Path) -> None:
    loss = lost()
    engine = LossyEngine([(method, step, loss) for step in (3, 4, 5)])
    engine.run_dir = tmp_path
    with pytest.raises(BlockLostError) as caught:
        drive(engine, tmp_path)
    assert caught.value is loss and engine.given_up == [loss]
    found = events(tmp_path)
    assert of(found, "recovering", "recovered", "finished") == []
    assert found[-1]["event"] == "warning" and str(tmp_path / "postmortem.txt") in found[-1]["message"]


def test_last_words_of_an_earlier_part_of_the_run_are_not_said_to_be_of_this_one(tmp_path: Path) -> None:
    engine = LossyEngine([("run_steps", 3, lost())])
    (tmp_path / "postmortem.txt").write_text("last words of another day")
    with pytest.raises(BlockLostError):
        drive(engine, tmp_path)
    assert of(events(tmp_path), "warning") == []


def test_the_error_that_began_it_all_is_raised(tmp_path: Path) -> None:
    class Blaming(LossyEngine):
        def give_up(self, loss: LowdimfaError) -> LowdimfaError:
            return InputError("train.loss", "nothing", "a loss")

    with pytest.raises(InputError, match=r"train\.loss"):
        drive(Blaming([("run_steps", 3, PeerError("lost block 1"))]), tmp_path)


def test_a_loss_during_a_recovery_begins_another(tmp_path: Path) -> None:
    losses = [lost("block 1 was lost"), lost("block 0 was lost too"), PeerError("no connection")]
    script = list(zip(("run_steps", "recover", "recover"), (7, 7, 7), losses, strict=True))
    engine = LossyEngine(script)
    found = drive(engine, tmp_path, on_failure="rejoin")
    assert of(found, "recovering", "recovered") == [*[("recovering", 7)] * 3, ("recovered", 7)]
    assert [arguments[1] for method, _, *arguments in engine.calls if method == "recover"] == losses
    assert [event["blocks"] for event in found if event["event"] == "recovering"] == [[1], [1], []]
    assert_complete(found, engine, tmp_path)


@pytest.mark.parametrize("method", ["start", "run_steps", "recover"])
def test_a_budget_that_is_used_up_ends_the_run_and_names_the_setting(method: str, tmp_path: Path) -> None:
    step = 0 if method == "start" else 7
    script: list[tuple[str, int, LowdimfaError]] = [(method, step, lost()) for _ in range(9)]
    engine = LossyEngine([("run_steps", 7, lost()), *script] if method == "recover" else script)
    with pytest.raises(PeerError, match=r"3 losses within 600 s.*run\.max_recoveries \(2\)") as caught:
        drive(engine, tmp_path, on_failure="rejoin", max_recoveries=2)
    assert caught.value.message.startswith("block 1 was lost; ")
    assert (caught.value.block, caught.value.setting) == (1, "run.max_recoveries")
    assert engine.given_up == [caught.value]
    assert len(of(events(tmp_path), "recovering")) == 2


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
def test_a_callback_may_end_a_run_at_its_recovery(policy: str, tmp_path: Path) -> None:
    class Enough(Callback):
        def recovered(self, event: Any, run: Any) -> None:
            run.stop("enough")

    found = drive(LossyEngine([("run_steps", 7, lost())]), tmp_path, on_failure=policy, callbacks=[Enough()])
    assert found[-1]["event"] == "finished" and found[-1]["stopped_early"] == "enough"
    assert found[-1]["steps"] < STEPS


@pytest.mark.parametrize("method", ["run_steps", "evaluate"])
def test_the_time_of_a_recovery_is_no_time_spent_training(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(LossyEngine):
        def run_steps(self, *arguments: Any) -> int:
            now[0] += 1.0
            return super().run_steps(*arguments)

        def recover(self, *arguments: Any) -> Recovered:
            now[0] += 100.0
            return super().recover(*arguments)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = drive(Slow([(method, 4, lost())]), tmp_path, on_failure="rejoin")
    assert 0 < found[-1]["seconds"] == now[0] - 100.0
    assert found[-1]["samples_per_second"] == found[-1]["samples"] / found[-1]["seconds"]


def test_losses_far_apart_do_not_add_up(tmp_path: Path) -> None:
    script: list[tuple[str, int, LowdimfaError]] = [("run_steps", step, lost()) for step in range(STEPS)]
    found = drive(
        LossyEngine(script), tmp_path, on_failure="rejoin", max_recoveries=1, recovery_window_seconds=1e-9
    )
    assert len(of(found, "recovered")) == STEPS


def not_finite() -> NotFiniteError:
    return NotFiniteError("the loss is not finite", block=1, step=5)


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
def test_what_is_not_finite_once_is_cured_and_twice_is_not(policy: str, tmp_path: Path) -> None:
    engine = LossyEngine([("run_steps", 5, not_finite())])
    found = drive(engine, tmp_path / "once", on_failure=policy)
    assert_complete(found, engine, tmp_path / "once")
    assert [event["blocks"] for event in found if event["event"] == "recovering"] == [[]]
    engine = LossyEngine(
        [("run_steps", 5, not_finite()), ("run_steps", 7, lost()), ("evaluate", 8, not_finite())]
    )
    with pytest.raises(NotFiniteError):
        drive(engine, tmp_path / "twice", on_failure=policy)
    assert len(of(events(tmp_path / "twice"), "recovered")) == 2


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
def test_an_engine_that_can_not_recover_announces_no_recovery(policy: str, tmp_path: Path) -> None:
    loss = not_finite()
    engine = LossyEngine([("run_steps", 5, loss)])
    engine.recovers = False
    with pytest.raises(NotFiniteError) as caught:
        drive(engine, tmp_path, on_failure=policy)
    assert caught.value is loss and engine.given_up == [loss] and engine.checkpoints == []
    assert of(events(tmp_path), "recovering") == []


def test_a_test_loss_that_is_not_finite_once_is_cured(tmp_path: Path) -> None:
    class Infinite(LossyEngine):
        def evaluate(self) -> Evaluation:
            result = super().evaluate()
            return result if self.recoveries else Evaluation(float("inf"), 1)

    engine = Infinite()
    assert_complete(drive(engine, tmp_path, on_failure="restart"), engine, tmp_path)


@pytest.mark.parametrize(
    "loss",
    [
        InputError("data", "nothing", "something"),
        HandshakeError("another version"),
        ResourceError("no room in the cluster"),
        LowdimfaError("a defect"),
    ],
)
@pytest.mark.parametrize("method", ["start", "recover", *METHODS])
def test_what_another_time_does_not_cure_ends_the_run(
    method: str, loss: LowdimfaError, tmp_path: Path
) -> None:
    script = [(method, step, loss) for step in (0, 3, 4, 5)]
    engine = LossyEngine([("run_steps", 5, lost()), *script] if method == "recover" else script)
    with pytest.raises(type(loss)) as caught:
        drive(engine, tmp_path, on_failure="restart")
    assert caught.value is loss and engine.given_up == [loss]
    assert len(of(events(tmp_path), "recovering")) == (method == "recover")


def full() -> DiskFullError:
    return DiskFullError("no space left")


@pytest.mark.parametrize("policy", ["fail", "restart", "rejoin"])
def test_a_full_disk_on_the_way_is_a_warning_and_at_the_end_the_end(policy: str, tmp_path: Path) -> None:
    engine = LossyEngine([("save", 3, full()), ("save", 6, full())])
    found = drive(engine, tmp_path / "way", on_failure=policy)
    failed = [event for event in found if event["event"] == "checkpoint_failed"]
    assert [(event["step"], event["message"]) for event in failed] == [
        (3, "no space left"),
        (6, "no space left"),
    ]
    warnings = [event["message"] for event in found if event["event"] == "warning"]
    assert warnings == [
        "no checkpoint of step 3: no space left; make room: the run goes on and tries again",
        "checkpoints are written again; 2 were not",
    ]
    assert of(found, "checkpoint") == [("checkpoint", 9), ("checkpoint", 12)]
    assert found[-1]["event"] == "finished" and of(found, "recovering") == []
    with pytest.raises(DiskFullError):
        drive(LossyEngine([("save", 12, full())] * 2), tmp_path / "end", on_failure=policy)
    assert list((tmp_path / "end" / "checkpoints").glob("*12*")) == []


def test_a_restart_goes_back_past_the_checkpoint_that_found_no_room(tmp_path: Path) -> None:
    engine = LossyEngine([("save", 6, full()), ("run_steps", 8, lost())])
    found = drive(engine, tmp_path, on_failure="restart")
    assert of(found, "recovered") == [("recovered", 3)]
    assert_complete(found, engine, tmp_path)


def test_a_restart_goes_back_past_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Damaging(LossyEngine):
        def run_steps(self, first_step: int, *arguments: Any) -> int:
            if first_step == 6 and not self.recoveries:
                newest = self.newest(tmp_path)
                assert newest is not None
                newest.write_bytes(b"damaged")
            return super().run_steps(first_step, *arguments)

    engine = Damaging([("run_steps", 7, lost())])
    found = drive(engine, tmp_path, on_failure="restart")
    assert of(found, "recovered") == [("recovered", 3)]
    assert_complete(found, engine, tmp_path)


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
@pytest.mark.parametrize("asked_in", ["start", "recover", *METHODS])
def test_a_stop_that_is_asked_for_in_the_middle_of_losses(policy: str, asked_in: str, tmp_path: Path) -> None:
    stop = StopRequest()
    engine = LossyEngine(
        [("run_steps", 2, lost()), ("recover", 2, lost()), ("save", 3, lost()), ("run_steps", 4, lost())]
    )
    engine.stop_at = asked_in, stop
    with pytest.raises(StoppedError) as caught:
        drive(engine, tmp_path, stop=stop, on_failure=policy)
    newest = CheckpointStore(tmp_path).newest_good().manifest
    assert newest is not None and newest.step == caught.value.step == engine.step
    again = LossyEngine()
    again.saved = engine.saved
    drive(again, tmp_path, resume=True, on_failure=policy)
    assert_complete(events(tmp_path), again, tmp_path)


def test_losses_while_a_stop_writes_its_checkpoint(tmp_path: Path) -> None:
    stop = StopRequest()
    engine = LossyEngine([("save", 1, lost()), ("recover", 1, lost()), ("save", 0, lost())])
    engine.stop_at = "run_steps", stop
    with pytest.raises(StoppedError, match="step 0"):
        drive(engine, tmp_path, stop=stop, on_failure="restart")
    assert CheckpointStore(tmp_path).list() == [0]


def test_progress_is_in_order_between_recoveries(tmp_path: Path) -> None:
    engine = LossyEngine([("run_steps", step, lost()) for step in (2, 5, 8, 11)])
    found = drive(engine, tmp_path, on_failure="restart")
    for (_, before), (kind, after) in pairwise(of(found, "progress", "recovered")):
        assert after == before + 1 or kind == "recovered"
