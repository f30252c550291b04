"""Callbacks: when they are told of what, what becomes of those that fail or hang, and how they end a run."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from lossy_engine import EVALUATE, SPECIFICATION, STEPS, LossyEngine, drive, events, plan
from lossy_engine import of as pairs
from torch import Tensor, nn

from lowdimfa.callback import CALLS, Callback, Run
from lowdimfa.errors import BlockLostError, InputError, StoppedError
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.spec.given import Given
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.callbacks import Callbacks, make_callbacks

PATIENT = {"liveness_seconds": 60.0}
DRIVEN = [name for name in CALLS if name != "failed"]


class Noting(Callback):
    """Notes every call in a list that several may share."""

    def __init__(self, name: str = "", calls: list[tuple[str, str, int]] | None = None) -> None:
        self.name, self.calls = name, [] if calls is None else calls
        self.seen: list[dict[str, Any]] = []
        self.act: Callable[[Any, Run], None] = lambda event, run: None


def _note(kind: str) -> Callable[..., None]:
    def method(self: Noting, event: dict[str, Any], run: Run) -> None:
        assert event["event"] == kind
        self.calls.append((self.name, kind, run.step))
        self.seen.append(event)
        self.act(event, run)

    return method


for each in CALLS:
    setattr(Noting, each, _note(each))


class Background(Noting):
    background = True


def test_all_are_told_of_all_that_is_logged_in_the_order_of_the_list(tmp_path: Path) -> None:
    calls: list[tuple[str, str, int]] = []
    first, second, aside = Noting("first", calls), Noting("second", calls), Background("aside")
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=[first, aside, second], **PATIENT)
    wanted = [event for event in logged if event["event"] in CALLS]
    assert {event["event"] for event in wanted} == set(DRIVEN) - {"recovered"}
    assert first.seen[:-1] == second.seen[:-1] == aside.seen[:-1] == wanted[:-1]
    assert first.seen[-1] | {"time": 0} == wanted[-1] | {"time": 0}  # it is logged after they heard of it
    assert [name for name, _, _ in calls] == ["first", "second"] * len(wanted)
    steps = [(kind, step) for name, kind, step in calls if name == "first"]
    # A checkpoint is complete some steps after its own.
    reached = accumulate((event.get("step", STEPS) for event in wanted), max)
    assert steps == [(event["event"], step) for event, step in zip(wanted, reached, strict=True)]


def test_only_a_recovery_takes_the_step_of_the_run_back(tmp_path: Path) -> None:
    calls: list[tuple[str, str, int]] = []
    made = plan(**PATIENT)
    told = Callbacks([Noting("one", calls)], made.specification, tmp_path, lambda reason: None)
    course = [("progress", 7), ("checkpoint", 6), ("recovered", 6), ("progress", 7), ("recovered", 3)]
    for kind, step in course:
        told.saw({"event": kind, "step": step})
    told.end({"event": "failed"})
    assert [step for _, _, step in calls] == [7, 7, 6, 7, 3, 3]


def test_after_a_loss_and_a_resume_they_hear_from_which_step_the_run_goes_on(tmp_path: Path) -> None:
    engine, callback = LossyEngine([("run_steps", 8, BlockLostError("lost", block=0))]), Noting()
    drive(engine, tmp_path / "run", callbacks=[callback], on_failure="restart", **PATIENT)
    assert pairs(callback.seen, "started", "recovered") == [("started", 0), ("recovered", 6)]
    again = Noting()
    engine.close()
    drive(engine, tmp_path / "run", callbacks=[again], resume=True, **PATIENT)
    assert pairs(again.seen, "started") == [("started", STEPS)]


@pytest.mark.parametrize("kind", sorted(set(DRIVEN) - {"recovered"}))
@pytest.mark.parametrize("make", [Noting, Background])
@pytest.mark.parametrize("error", [ValueError("no luck"), SystemExit(3)], ids=["an error", "an exit"])
def test_one_that_fails_is_a_warning_once_and_is_left_alone(
    kind: str, make: type[Noting], error: BaseException, tmp_path: Path
) -> None:
    def fail(event: dict[str, Any], run: Run) -> None:
        if event["event"] == kind:
            raise error

    failing, other = make(), Noting()
    failing.act = fail
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=[failing, other], **PATIENT)
    assert logged[-1]["event"] == "finished"
    (said,) = [event["message"] for event in logged if event["event"] == "warning"]
    words = (
        f"callback {make.__name__} failed in '{kind}' ({type(error).__name__}: {error}, in {__file__}, line"
    )
    assert words in said and "it is not called any more" in said
    assert failing.seen[-1]["event"] == kind and [event["event"] for event in failing.seen].count(kind) == 1
    assert len(other.seen) == len([event for event in logged if event["event"] in CALLS])


@pytest.fixture
def hanging() -> Iterator[Callable[[Noting, str], Noting]]:
    """Let a callback hang in a method until the test is over."""
    over = threading.Event()

    def hang(callback: Noting, kind: str) -> Noting:
        callback.act = lambda event, run: (event["event"] == kind and over.wait()) or None
        return callback

    yield hang
    over.set()


@pytest.mark.parametrize(
    ("make", "kind"), [(Noting, "evaluated"), (Noting, "finished"), (Background, "started")]
)
def test_one_that_hangs_holds_the_run_up_for_its_liveness_at_most(
    kind: str, make: type[Noting], hanging: Callable[..., Noting], tmp_path: Path
) -> None:
    silent, other = hanging(make(), kind), Noting()
    began = time.monotonic()
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=[silent, other], liveness_seconds=0.9)
    assert time.monotonic() - began < 0.9 + 5
    (said,) = [event["message"] for event in logged if event["event"] == "warning"]
    assert f"callback {make.__name__} gives no answer to" in said
    assert [event["event"] for event in silent.seen].count(kind) == 1
    assert other.seen[-1]["event"] == "finished" == logged[-1]["event"]


def test_many_that_hang_share_the_time_at_the_end(hanging: Callable[..., Noting], tmp_path: Path) -> None:
    silent = [hanging(Background(), "started") for _ in range(20)]
    began = time.monotonic()
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=silent, liveness_seconds=0.5)
    assert time.monotonic() - began < 20 * 0.5 / 2
    assert len([event for event in logged if event["event"] == "warning"]) == 20


def test_one_in_the_background_does_not_keep_the_run_waiting(tmp_path: Path) -> None:
    """The last event but one is there while the first is still worked on."""
    logged = threading.Event()
    aside, last = Background(), Noting()
    aside.act = lambda event, run: (
        event["event"] == "started" and not logged.wait(60) and pytest.fail("held up")
    )
    last.act = lambda event, run: event["event"] == "checkpoint" and event["step"] == STEPS and logged.set()
    drive(LossyEngine(), tmp_path / "run", callbacks=[aside, last], **PATIENT)
    assert aside.seen == last.seen


def stop_at(kind: str, step: int) -> Noting:
    callback = Noting()
    callback.act = lambda event, run: event["event"] == kind and run.step == step and run.stop("good enough")
    return callback


@pytest.mark.parametrize(
    ("kind", "step"), [("started", 0), ("evaluated", EVALUATE), ("checkpoint", 6), ("progress", 7)]
)
def test_one_may_end_the_run_at_its_step_as_finished(kind: str, step: int, tmp_path: Path) -> None:
    at_rest = {
        "background_checkpoints": kind != "checkpoint"
    }  # otherwise the run is past the checkpoint's step
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=[stop_at(kind, step)], **PATIENT, **at_rest)
    assert (logged[-1]["event"], logged[-1]["steps"]) == ("finished", step)
    assert logged[-1]["stopped_early"] == "good enough"
    done = {kind for kind, at in pairs(logged, "evaluated", "checkpoint") if at == step}
    assert done == {"evaluated", "checkpoint"}


def test_a_wish_at_the_last_step_is_no_early_end(tmp_path: Path) -> None:
    logged = drive(LossyEngine(), tmp_path / "run", callbacks=[stop_at("evaluated", STEPS)], **PATIENT)
    assert logged[-1]["steps"] == STEPS and "stopped_early" not in logged[-1]


def test_the_wish_of_a_course_that_is_given_up_is_given_up(tmp_path: Path) -> None:
    engine, callback = LossyEngine([("save", 7, BlockLostError("lost", block=0))]), stop_at("progress", 7)
    wanted: list[int] = []
    act = callback.act

    def once(event: Any, run: Run) -> None:
        if run.step == 7 and not wanted:
            wanted.append(7)
            act(event, run)

    callback.act = once
    logged = drive(engine, tmp_path / "run", callbacks=[callback], on_failure="restart", **PATIENT)
    assert pairs(logged, "recovered") == [("recovered", 6)]
    assert wanted == [7] and logged[-1]["steps"] == STEPS and "stopped_early" not in logged[-1]


def small(**run: Any) -> dict[str, Any]:
    return SPECIFICATION | {"run": {"timeline": False, "tensorboard": False} | run}


def test_a_person_who_stops_the_run_stops_it_whatever_callbacks_want(tmp_path: Path) -> None:
    callback = Noting()

    def both(event: Any, run: Run) -> None:
        if event["event"] == "progress" and event["step"] == 3:
            run.stop("good enough")
            trainer.stop()

    callback.act = both
    trainer = DecoupledTrainer(small(), engine="local", run_dir=tmp_path / "run", callbacks=[callback])
    with pytest.raises(StoppedError):
        trainer.fit()
    assert callback.seen[-1] | {"time": 0} == events(tmp_path / "run")[-1] | {"time": 0}
    assert (callback.seen[-1]["event"], callback.seen[-1]["code"]) == ("failed", "stopped")


def test_they_see_the_run_and_change_nothing_of_it(tmp_path: Path) -> None:
    clearing, callback = Noting(), Noting()
    views: set[tuple[Any, ...]] = set()

    def look(event: Any, run: Run) -> None:
        views.add((run.path, run.specification["train"]["batch_size"], (run.path / "spec.yaml").is_file()))

    def clear(event: Any, run: Run) -> None:
        event.clear()
        run.specification.clear()  # type: ignore[attr-defined]

    clearing.act, callback.act = clear, look
    trainer = DecoupledTrainer(
        small(), engine="local", run_dir=tmp_path / "run", callbacks=[clearing, callback]
    )
    result = trainer.fit()
    assert views == {(tmp_path / "run", 375, True)}
    assert result.metrics["steps"] == STEPS


@pytest.mark.parametrize(
    ("section", "where", "words"),
    [
        ({"factory": "test_callbacks:Nothing"}, "run.callbacks.0.factory", "has no such name"),
        ({"factory": "test_callbacks:plan"}, "run.callbacks.0.factory", "no object of a class"),
        ({"factory": "builtins:dict"}, "run.callbacks.0.factory", "makes an object of dict"),
        ({"factory": "test_callbacks:Noting", "args": {"nme": 1}}, "run.callbacks.0.factory", "nme"),
    ],
)
def test_what_is_no_callback_is_refused_before_a_run(
    section: dict[str, Any], where: str, words: str, tmp_path: Path
) -> None:
    trainer = DecoupledTrainer(small(callbacks=[section]), engine="local", run_dir=tmp_path / "run")
    with pytest.raises(InputError) as caught:
        trainer.fit()
    assert str(caught.value).startswith(where) and (
        words in str(caught.value) or words.startswith("no object")
    )
    assert not (tmp_path / "run").exists()


def test_objects_come_after_those_of_the_specification_and_are_checked() -> None:
    section = {"factory": "test_callbacks:Noting", "args": {"name": "written"}}
    specification = parse_specification(small(callbacks=[section]), "test")
    found = make_callbacks(specification, [Noting("given")])
    assert [callback.name for callback in found] == ["written", "given"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"callbacks\[0\].*the class Noting"):
        make_callbacks(specification, [Noting])  # type: ignore[list-item]


class Late(Callback):
    async def evaluated(self, event: Any, run: Run) -> None:  # type: ignore[override]
        run.stop("never")


class Failing(Callback):
    def check(self, specification: Any) -> None:
        raise KeyError("no luck")


@pytest.mark.parametrize(
    ("callback", "words"),
    [(Late(), r"Late: found 'evaluated' as a coroutine"), (Failing(), r"Failing: found a check .*no luck")],
)
def test_one_that_could_not_work_is_refused_before_a_run(callback: Callback, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_callbacks(parse_specification(small(), "test"), [callback])


OVER = threading.Event()


class Hanging(Callback):
    """Hangs in its check, or where it is made."""

    def __init__(self, at_once: bool = False) -> None:
        if at_once:
            OVER.wait()

    def check(self, specification: Any) -> None:
        OVER.wait()


@pytest.mark.parametrize(
    ("at_once", "words"),
    [(True, r"run\.callbacks\.0\.factory: found '.*Hanging'"), (False, "Hanging: found its")],
)
def test_one_that_hangs_before_a_run_is_refused(at_once: bool, words: str) -> None:
    section = {"factory": f"{__name__}:Hanging", "args": {"at_once": at_once}}
    run = {"liveness_seconds": 0.1, "tensorboard": False}
    try:
        with pytest.raises(InputError, match=rf"{words}.*, which gives no answer in 0\.3 s"):
            make_callbacks(parse_specification(small(callbacks=[section], **run), "test"))
    finally:
        OVER.set()
        OVER.clear()


def test_objects_are_no_part_of_what_they_and_listeners_see(tmp_path: Path) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    callback, views = Noting(), []
    callback.act = lambda event, run: views.append(json.dumps(run.specification))
    given = small() | {"train": small()["train"] | {"loss": Given.of("loss", loss)}}
    DecoupledTrainer(
        given, engine="local", run_dir=tmp_path / "run", callbacks=[callback], on_event=dict.clear
    ).fit()
    assert views and all('"loss": "<object loss>"' in view for view in views)


def test_what_a_built_in_one_does_not_take_is_refused_with_the_specification() -> None:
    with pytest.raises(InputError, match="no callback"):
        parse_specification(small(callbacks=[{"factory": "lowdimfa:InProcessTrainer"}]), "test")


def test_the_end_comes_once(tmp_path: Path) -> None:
    callback = Noting()
    told = Callbacks([callback], plan(**PATIENT).specification, tmp_path, print)
    told.end({"event": "finished", "steps": 3})
    told.end({"event": "failed"})
    assert [event["event"] for event in callback.seen] == ["finished"]


@pytest.mark.parametrize("factory", ["lowdimfa:MLflow", "lowdimfa:WandB"])
def test_a_tracker_that_is_not_installed_is_refused_by_the_name_of_its_extra(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = factory.partition(":")[2].lower()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"pip install 'lowdimfa\[{name}\]'"):
        make_callbacks(parse_specification(small(callbacks=[{"factory": factory}]), "test"))
