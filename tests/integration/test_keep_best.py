"""The best checkpoint stays, whatever is lost, given up and resumed: judged by brute force over the log."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lossy_engine import EVALUATE, SAVE, STEPS, LossyEngine, drive, plan

from lowdimfa.errors import BlockLostError, InputError
from lowdimfa.head import Evaluation
from lowdimfa.services.callbacks.numbers import require_watched
from lowdimfa.services.monitoring.journal import Event
from lowdimfa.services.run.best import load_best
from lowdimfa.services.run.checkpoint import CheckpointStore


class Judged(LossyEngine):
    """Its evaluations are what a test says, another at every call."""

    def __init__(self, losses: list[int], script: Any = ()) -> None:
        super().__init__(script)
        self.losses, self.states = list(losses), dict[int, float]()
        self.path: Path | None = None

    def _note(self, method: str, *arguments: Any) -> None:
        try:
            super()._note(method, *arguments)
        except BlockLostError as error:
            if error.message == "damage" and self.path is not None and (newest := self.newest(self.path)):
                newest.write_bytes(b"")
            raise

    def evaluate(self) -> Evaluation:
        self._note("evaluate")
        self.states[self.step] = self.value
        return Evaluation(float(self.losses.pop(0) if self.losses else 9), 1, 1, 2)


def best_in(logged: list[Event], mode: str, among: set[int] | None) -> tuple[int, float]:
    """Return step and value of the best evaluation of the course that the run took in the end, of these steps or of all.

    Of equals it is the first.
    """
    values: dict[int, float] = {}
    for event in logged:
        if event["event"] in ("started", "recovered"):
            values = {step: value for step, value in values.items() if step <= event["step"]}
        elif event["event"] == "evaluated":
            values.setdefault(event["step"], event["test_loss"])
    chosen = min if mode == "min" else max
    values = {step: value for step, value in values.items() if among is None or step in among}
    step = chosen(sorted(values), key=values.__getitem__)
    return step, values[step]


LOSS = st.tuples(
    st.sampled_from(["run_steps", "evaluate", "save", "align"]),
    st.integers(1, STEPS),
    st.sampled_from(["lost", "damage"]).map(lambda words: BlockLostError(words, block=0)),
)


@settings(deadline=None, max_examples=40)
@given(
    losses=st.lists(st.integers(0, 4), min_size=3, max_size=20),
    lost=st.lists(LOSS, max_size=3),
    mode=st.sampled_from(["min", "max"]),
    keep=st.integers(1, 2),
    part=st.one_of(st.none(), st.integers(1, STEPS - 1)),
)
def test_the_best_evaluation_of_the_final_course_has_its_checkpoint(
    losses: list[int], lost: list[tuple[str, int, BlockLostError]], mode: str, keep: int, part: int | None
) -> None:
    run = {"keep_best": {"metric": "test_loss", "mode": mode}, "keep": keep, "on_failure": "restart"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        engine = Judged(losses, lost)
        engine.path = path
        if part is not None:  # a part that ends without a word after some steps, and is resumed
            engine.script.append(("run_steps", part, KeyboardInterrupt()))  # type: ignore[arg-type]
            with pytest.raises(KeyboardInterrupt):
                drive(engine, path, **frozen(run))
            engine.close()
        logged = drive(engine, path, resume=bool(CheckpointStore(path).list()), **frozen(run))
        assert logged[-1]["event"] == "finished"
        store, damaged = CheckpointStore(path), any(error.message == "damage" for _, _, error in lost)
        # Where a checkpoint was damaged, the best before it may be gone: it was no longer the best.
        step, value = best_in(logged, mode, set(store.list()) if damaged else None)
        best = load_best(store)
        assert best.step == step and store.load(None).meta["best"]["value"] == value
        assert float(best.tensors("value".__eq__)["value"]) == engine.states[step]
        complete = list(store.list())
        assert complete[-1] == STEPS and step in complete
        if not damaged:
            assert len(complete) == len(set(complete[-keep:]) | {step})


def frozen(run: dict[str, Any]) -> dict[str, Any]:
    """Return settings that can be the key of a cache."""
    return {key: _Section(value) if isinstance(value, dict) else value for key, value in run.items()}


class _Section(dict[str, Any]):
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def test_without_the_setting_no_more_is_kept_and_none_is_the_best(tmp_path: Path) -> None:
    logged = drive(Judged([1, 2, 3]), tmp_path / "run", keep=1)
    assert [event["step"] for event in logged if event["event"] == "checkpoint"] == [
        *range(SAVE, STEPS + 1, SAVE)
    ]
    store = CheckpointStore(tmp_path / "run")
    assert store.list() == [STEPS] and "best" not in store.load(None).meta
    with pytest.raises(InputError, match=r"--best.*run\.keep_best"):
        load_best(store)


def test_a_better_evaluation_is_followed_by_a_checkpoint_and_a_worse_one_is_not(tmp_path: Path) -> None:
    best = frozen({"keep_best": {"metric": "test_loss", "mode": "min"}, "keep": 1, "checkpoint_every": 0})
    drive(Judged([5, 6, 7]), tmp_path / "run", **best)
    assert CheckpointStore(tmp_path / "run").list() == [EVALUATE, STEPS]


def test_what_is_evaluated_only_after_it_was_saved_can_be_the_best(tmp_path: Path) -> None:
    best = frozen(
        {
            "keep_best": {"metric": "test_loss", "mode": "min"},
            "checkpoint_every": 4,
            "evaluate_every_epochs": 0,
            "keep": 1,
        }
    )
    drive(Judged([3]), tmp_path / "run", **best)  # saved at 12 before it is evaluated there
    assert load_best(CheckpointStore(tmp_path / "run")).step == STEPS


@pytest.mark.parametrize("metric", ["test_los", "loss"])
@pytest.mark.parametrize("mode", ["min", "auto"])
def test_a_number_that_no_evaluation_has_is_refused(metric: str, mode: str) -> None:
    with pytest.raises(InputError, match=rf"run\.keep_best\.metric: found '{metric}'.*one of test_loss"):
        plan(**frozen({"keep_best": {"metric": metric, "mode": mode}}))


@pytest.mark.parametrize("metric", ["test_perplexity", "test_bits_per_byte"])
def test_a_number_of_language_models_is_refused_elsewhere(metric: str) -> None:
    with pytest.raises(InputError, match=rf"run\.keep_best\.metric: found '{metric}', which this run's"):
        require_watched(plan(**frozen({"keep_best": {"metric": metric, "mode": "min"}})), [])
