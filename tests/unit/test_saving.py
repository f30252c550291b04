"""Checkpoints in the background: what is saved is the state of their step, one at a time, and the last is waited for."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lossy_engine import SAVE, STEPS, LossyEngine, Written, drive, events, of, plan
from test_snapshot import network, train
from torch import Tensor

from lowdimfa.encoding import State
from lowdimfa.errors import BlockLostError, LowdimfaError, ResourceError, StorageError
from lowdimfa.head import Evaluation
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run import checkpoint_files
from lowdimfa.services.run import state as state_module
from lowdimfa.services.run.background import Writer
from lowdimfa.services.run.checkpoint import Attempt, CheckpointStore, Manifest
from lowdimfa.services.run.mirror import Mirror
from lowdimfa.services.run.state import saving
from lowdimfa.services.trainer import saving as trainer_saving
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.local_engine import LocalEngine

PATIENT = 60.0
"""Seconds that only a hang reaches."""
IMPATIENT = 0.2
"""Liveness where a file is waited for in vain, three times as long; the others have to be there within that, too."""


def bits(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def contents(manifest: Manifest) -> tuple[dict[str, bytes], list[Any]]:
    tensors = {name: bits(value) for name, value in manifest.tensors(lambda name: True).items()}
    return tensors, [entry.scalars for entry in manifest.entries]


def wanted() -> bool:
    return False


@settings(max_examples=4, deadline=None)
@given(
    model=st.sampled_from(["cnn", "tied"]),
    q_rule=st.sampled_from(["readout", "probed", "fixed"]),
    before=st.integers(0, 3),
    after=st.integers(1, 3),
)
def test_what_is_saved_is_the_state_of_the_step_though_training_goes_on(
    model: str, q_rule: str, before: int, after: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), keep=9)
        trained = network(model, "float32", q_rule)
        train(trained, model, range(before))
        there, late = store.begin(1), store.begin(2)
        resting = [saving(stage, there, 1, copy=False) for stage in trained.stages]
        store.commit(1, [write(wanted) for write in resting], {})
        writes = [saving(stage, late, 2, copy=True) for stage in trained.stages]
        train(trained, model, range(before, before + after))
        store.commit(2, [write(wanted) for write in writes], {})
        assert contents(store.load(2)) == contents(store.load(1))


def test_a_file_that_nobody_wants_any_more_is_not_there(tmp_path: Path) -> None:
    attempt = CheckpointStore(tmp_path).begin(1)
    write = saving(network("mlp", "float32", "fixed").stages[0], attempt, 1, copy=True)
    with pytest.raises(ResourceError):
        write(lambda: True)
    assert [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()] == []


def test_a_writer_ends_what_nobody_wants() -> None:
    def until_unwanted(unwanted: Callable[[], bool]) -> str:
        while not unwanted():
            pass
        return "ended"

    writer = Writer[str]("test", PATIENT)
    writer.begin(until_unwanted)
    assert not writer.done and writer.end() and writer.done
    writer.begin(lambda unwanted: "second")
    assert writer.written(PATIENT) == "second"
    hanging = Writer[None]("test", patience=0.01)
    held = threading.Event()
    hanging.begin(lambda unwanted: held.wait(PATIENT) and None)
    assert not hanging.end()
    held.set()


class Slow(Written):
    """Files that are there after some looks, or never, or whose block is lost meanwhile."""

    def __init__(self, found: list[dict[str, Any]], looks: float, loss: LowdimfaError | None = None) -> None:
        super().__init__(found)
        self.looks, self.loss = looks, loss

    def entries(self, seconds: float) -> list[dict[str, Any]] | None:
        self.looks -= 1
        if self.looks > 0:
            threading.Event().wait(0.001)
            return None
        if self.loss is not None:
            raise self.loss
        return super().entries(seconds)

    def missing(self) -> set[int]:
        return {1} if self.looks > 0 or self.loss is not None else set()


class SlowEngine(LossyEngine):
    """Its files are there after as many looks as a test says, by step."""

    def __init__(self, looks: dict[int, float], script: Any = (), loss: LowdimfaError | None = None) -> None:
        super().__init__(script)
        self.looks, self.loss, self.flight = looks, loss, Slow([], 0)

    def save(self, attempt: Attempt, step: int, copy: bool) -> Slow:
        assert not self.flight.missing() or self.flight.loss or self.flight.looks > 1e9, "two are in flight"
        written = super().save(attempt, step, copy)
        loss, self.loss = (self.loss, None) if step in self.looks else (None, self.loss)
        self.flight = Slow(written.entries(0), self.looks.pop(step, 0), loss)
        return self.flight


@settings(max_examples=6, deadline=None)
@given(
    looks=st.dictionaries(st.sampled_from(range(SAVE, STEPS + 1, SAVE)), st.integers(0, 15)),
    lost_at=st.none() | st.integers(1, STEPS - 1),
)
def test_one_at_a_time_and_each_of_its_step(looks: dict[int, float], lost_at: int | None) -> None:
    script = [] if lost_at is None else [("run_steps", lost_at, BlockLostError("lost", block=0))]
    with tempfile.TemporaryDirectory() as folder:
        engine, path = SlowEngine(looks, script), Path(folder) / "run"
        logged = drive(engine, path, keep=9, on_failure="restart", liveness_seconds=PATIENT)
        assert logged[-1]["event"] == "finished" and logged[-1]["test_loss"] == engine.value
        store = CheckpointStore(path)
        assert store.list() == [*range(SAVE, STEPS + 1, SAVE)]
        for step in store.list():
            assert float(store.load(step).tensors("value".__eq__)["value"]) == engine.saved[step]
        assert not of(logged, "checkpoint_failed")
        told = [event for event in logged if event["event"] == "checkpoint"]
        assert all(0 <= event["pause_seconds"] <= event["seconds"] for event in told)
        assert told[-1]["step"] == STEPS


def test_a_wait_for_the_one_before_is_said_once_and_is_part_of_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_saving, "LONG_WAIT_SECONDS", 0.01)
    logged = drive(SlowEngine({3: 200}), tmp_path / "run", liveness_seconds=PATIENT)
    (said,) = [event["message"] for event in logged if "stood for" in event.get("message", "")]
    assert "at step 6" in said and "run.checkpoint_every" in said
    pauses = {event["step"]: event["pause_seconds"] for event in logged if event["event"] == "checkpoint"}
    assert pauses[6] > 0.01  # most of 200 looks of a millisecond each, as training does nothing here
    waited = drive(LossyEngine(), tmp_path / "waited", background_checkpoints=False)
    saved = [event for event in waited if event["event"] == "checkpoint"]
    assert len(saved) == STEPS // SAVE and all(event["pause_seconds"] == event["seconds"] for event in saved)


def test_what_is_never_written_is_a_warning_on_the_way_and_the_last_good_one_stays(tmp_path: Path) -> None:
    logged = drive(SlowEngine({6: 1e12}), tmp_path / "run", keep=9, liveness_seconds=IMPATIENT)
    assert of(logged, "checkpoint_failed") == [("checkpoint_failed", 6)]
    assert CheckpointStore(tmp_path / "run").list() == [3, 9, 12]
    (warned,) = [event["message"] for event in logged if "no checkpoint" in event.get("message", "")]
    assert "the files of block 1 were not written within 0.6 s" in warned and "goes on" in warned


def test_the_end_and_a_stop_wait_for_the_last_one_and_name_who_holds_it_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"block 1 were not written within 0\.6 s.*liveness"):
        drive(SlowEngine({STEPS: 1e12}), tmp_path / "run", checkpoint_every=5, liveness_seconds=IMPATIENT)
    assert CheckpointStore(tmp_path / "run").list() == [5, 10]


def test_a_block_that_is_lost_while_it_writes_leaves_no_checkpoint_and_is_not_waited_for(
    tmp_path: Path,
) -> None:
    """The liveness is longer than any test: a wait for the lost block would show."""
    lost = BlockLostError("block 1 was lost", block=1)
    for looks, name in ((1e12, "silent"), (0, "dead")):
        engine = SlowEngine({6: looks}, [("run_steps", 7, lost)], loss=lost)
        logged = drive(engine, tmp_path / name, on_failure="restart", keep=9, liveness_seconds=1e6)
        assert of(logged, "recovered", "checkpoint", "checkpoint_failed") == [
            ("checkpoint", 3),
            ("recovered", 3),
            ("checkpoint", 6),
            ("checkpoint", 9),
            ("checkpoint", 12),
        ]


def test_a_checkpoint_is_completed_though_a_replica_is_lost_that_writes_none_of_it(tmp_path: Path) -> None:
    engine = SlowEngine({6: 10}, [("run_steps", 7, BlockLostError("lost", block=1, replica=1))])
    logged = drive(engine, tmp_path / "run", on_failure="restart", keep=9, liveness_seconds=PATIENT)
    assert of(logged, "recovered") == [("recovered", 6)]


def test_a_run_that_fails_completes_what_is_in_flight(tmp_path: Path) -> None:
    engine = SlowEngine({6: 10}, [("run_steps", 7, LowdimfaError("a fault"))])
    with pytest.raises(LowdimfaError, match="a fault"):
        drive(engine, tmp_path / "run", liveness_seconds=PATIENT)
    assert CheckpointStore(tmp_path / "run").list() == [3, 6]
    assert of(events(tmp_path / "run"), "checkpoint") == [("checkpoint", 3), ("checkpoint", 6)]


def test_what_a_thread_raises_does_not_take_the_place_of_why_a_run_ended(tmp_path: Path) -> None:
    wrong: Any = AssertionError("of the thread")
    for number, why in enumerate[Any]((KeyboardInterrupt(), RuntimeError("of a callback"))):
        engine = SlowEngine({6: 10}, [("run_steps", 7, why)], loss=wrong)
        with pytest.raises(type(why)) as raised:
            drive(engine, tmp_path / str(number), liveness_seconds=PATIENT)
        assert raised.value is why and CheckpointStore(tmp_path / str(number)).list() == [3]


def test_the_pause_of_the_best_has_its_wait_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_saving, "LONG_WAIT_SECONDS", 0.01)
    best = {"metric": "test_loss", "mode": "max"}  # that grows: each is the best
    logged = drive(SlowEngine({3: 200}), tmp_path / "run", liveness_seconds=PATIENT, keep_best=best)
    pauses = {event["step"]: event["pause_seconds"] for event in logged if event["event"] == "checkpoint"}
    assert pauses[4] > 0.01
    assert [event for event in logged if "at step 4," in event.get("message", "")]


def test_training_waits_for_no_copies_of_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, told = threading.Event(), threading.Event()

    def update(mirror: Mirror) -> str:
        assert over.wait(PATIENT)
        told.set()
        return "no answer"

    class Going(LossyEngine):
        def evaluate(self) -> Evaluation:
            if self.step == STEPS:
                over.set()
            return super().evaluate()

    monkeypatch.setattr(Mirror, "update", update)
    logged = drive(Going(), tmp_path / "run", liveness_seconds=PATIENT)
    assert told.is_set() and of(logged, "checkpoint")[-1] == ("checkpoint", STEPS)
    assert [event for event in logged if "not copied: no answer" in event.get("message", "")]


SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": 9, "batch_size": 16, "log_every": 1, "average": {"decay": 0.9}},
    "run": {"checkpoint_every": 4, "keep": 9, "evaluate_every_epochs": 0, "tensorboard": False},
}


def test_training_goes_on_meanwhile_and_a_resumed_run_has_its_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_on, write = threading.Event(), checkpoint_files.write_tensors

    def held(*parts: Any) -> None:
        assert gone_on.wait(PATIENT)
        write(*parts)

    seen: list[Event] = []

    def note(event: Event) -> None:
        seen.append(event)
        if event["event"] == "progress" and event["step"] == 6:
            gone_on.set()

    waited = SPECIFICATION | {"run": SPECIFICATION["run"] | {"background_checkpoints": False}}
    DecoupledTrainer(waited, engine="local", run_dir=tmp_path / "waited").fit()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files, "write_tensors", held)
        DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run", on_event=note).fit()
    order = [
        (event["event"], event["step"]) for event in seen if event["event"] in ("progress", "checkpoint")
    ]
    assert order.index(("checkpoint", 4)) > order.index(("progress", 6))
    DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run", resume_step=4).fit()
    for step in (4, 8, 9):
        found, expected = (CheckpointStore(tmp_path / name).load(step) for name in ("run", "waited"))
        assert contents(found) == contents(expected)


def test_a_run_that_is_interrupted_leaves_no_file_of_what_was_in_flight_and_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, over, write = threading.Event(), threading.Event(), checkpoint_files.write_tensors

    def held(file: Any, *parts: Any) -> None:
        begun.set()
        while not file._unwanted():
            over.wait(0.001)
        write(file, *parts)

    def interrupt(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == 6:
            assert begun.wait(PATIENT)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_files, "write_tensors", held)
    with pytest.raises(KeyboardInterrupt):
        DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path, on_event=interrupt).fit()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()] == []


def test_a_copy_is_made_once_that_of_a_checkpoint_given_up_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block holds two."""
    engine = LocalEngine(plan(liveness_seconds=PATIENT), "unused")
    engine._network = network("mlp", "float32", "fixed")
    living: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def copied(state: State) -> State:
        counts.append(sum(one() is not None for one in living))
        made = copy_of(state)
        living.extend(weakref.ref(value) for value in made.tensors.values())
        return made

    copy_of = state_module.copied
    monkeypatch.setattr(state_module, "copied", copied)
    monkeypatch.setattr(state_module, "write_block", lambda attempt, state, unwanted: _until(unwanted))
    for step in (1, 2):
        engine.save(Attempt("unused", "step", "mark", 1.0), step, copy=True)
    engine.close()
    assert counts[len(counts) // 2] == 0 and living


def _until(unwanted: Callable[[], bool]) -> dict[str, Any]:
    while not unwanted():
        threading.Event().wait(0.001)
    return {}
