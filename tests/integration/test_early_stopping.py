"""Early stopping: where it ends a run, also one that was resumed or went back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lossy_engine import SPECIFICATION

from lowdimfa.callback import Run
from lowdimfa.errors import InputError
from lowdimfa.services.callbacks.early_stopping import EarlyStopping
from lowdimfa.services.monitoring.journal import Journal
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.callbacks import make_callbacks
from lowdimfa.services.trainer.run_dir import opened


def with_(**arguments: Any) -> Specification:
    section = {"factory": "lowdimfa:EarlyStopping", "args": arguments}
    return parse_specification(SPECIFICATION | {"run": {"callbacks": [section]}}, "test")


def stopper(**arguments: Any) -> EarlyStopping:
    return EarlyStopping(**{"metric": "test_loss", "patience": 2} | arguments)


def course(
    path: Path, values: list[float | None], start: int = 0, callback: EarlyStopping | None = None
) -> int:
    """Evaluate after each step, None for a loss that goes two steps back; return how many steps the run came to."""
    path.mkdir(exist_ok=True)
    reasons: list[str] = []
    callback, run, step = callback or stopper(), Run({}, path, reasons.append), start
    with opened(Journal(path)) as journal:
        callback.started(journal.emit("started", step=step), run)
        for value in values:
            if reasons:
                break
            if value is None:
                step = max(0, step - 2)
                callback.recovered(journal.emit("recovered", step=step), run)
            else:
                step += 1
                callback.evaluated(journal.emit("evaluated", step=step, test_loss=value), run)
    return step


LOSSES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


def ends_at(values: list[float], patience: int, delta: float) -> int:
    """Say by brute force where a run of these evaluations ends: where the best so far is too old."""
    for end in range(1, len(values) + 1):
        better = [
            n for n in range(end) if all(values[n] < values[m] - delta for m in _records(values[:n], delta))
        ]
        if end - 1 - better[-1] >= patience:
            return end
    return len(values)


def _records(values: list[float], delta: float) -> list[int]:
    """Return the newest of the values that were better than the best before by the least difference."""
    best: list[int] = []
    for index, value in enumerate(values):
        if not best or value < values[best[0]] - delta:
            best = [index]
    return best


@given(
    values=LOSSES,
    patience=st.integers(1, 4),
    delta=st.sampled_from([0.0, 1.0]),
    sign=st.sampled_from([1, -1]),
)
def test_early_stopping_ends_where_the_best_is_too_old(
    values: list[float], patience: int, delta: float, sign: int
) -> None:
    callback = stopper(patience=patience, min_delta=delta, mode="min" if sign == 1 else "max")
    with tempfile.TemporaryDirectory() as folder:
        reached = course(Path(folder), [sign * value for value in values], callback=callback)
    assert reached == ends_at(values, patience, delta)


@given(before=LOSSES, given_up=LOSSES, after=LOSSES, back=st.booleans())
def test_early_stopping_counts_on_after_a_resume_and_a_step_back(
    before: list[float], given_up: list[float], after: list[float], back: bool
) -> None:
    """Property: whatever was given up in between, it ends where a run that was never interrupted does."""
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        expected = course(whole, [*before, *after])
        reached = course(parts, before)
        if reached == len(before):
            lost: list[float | None] = [*given_up[:2], *[None] * (back and len(given_up) > 1)]
            course(parts, lost, reached, stopper(patience=99))
        assert course(parts, after, reached) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"patience": 0}, "patience"), ({"min_delta": -1.0}, "min_delta")],
)
def test_early_stopping_refuses_what_makes_no_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"run\.callbacks\.0\.factory: .*{words} is"):
        make_callbacks(with_(**arguments))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("tset_loss", "'tset_loss', which this run's evaluations don't have; .*Did you mean 'test_loss'"),
        ("test_perplexity", "'test_perplexity', which .*; expected one number: test_loss, test_accuracy"),
    ],
)
def test_early_stopping_refuses_a_number_that_no_evaluation_has(
    metric: str, words: str, tmp_path: Path
) -> None:
    trainer = DecoupledTrainer(with_(metric=metric), engine="local", run_dir=tmp_path / "run")
    with pytest.raises(InputError, match=f"the callback EarlyStopping: found {words}"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


def test_more_accuracy_is_better_without_being_told(tmp_path: Path) -> None:
    reasons: list[str] = []
    callback, run = EarlyStopping(metric="test_accuracy", patience=2), Run({}, tmp_path, reasons.append)
    with opened(Journal(tmp_path)) as journal:
        callback.started(journal.emit("started", step=0), run)
        for step, value in enumerate((0.5, 0.6, 0.7, 0.6, 0.6), 1):
            assert not reasons
            callback.evaluated(journal.emit("evaluated", step=step, test_accuracy=value), run)
    assert reasons == ["test_accuracy is no better after 2 evaluations than 0.7"]


def test_numbers_that_are_none_are_no_better_and_those_from_before_a_metric_do_not_count(
    tmp_path: Path,
) -> None:
    """A correlation is NaN in a first evaluation, say, and a resumed run measures more than the one before."""
    reasons: list[str] = []
    callback, run = EarlyStopping(metric="r2", patience=2, mode="max"), Run({}, tmp_path, reasons.append)
    with opened(Journal(tmp_path)) as journal:
        journal.emit("evaluated", step=1, test_loss=1.0)
        callback.started(journal.emit("started", step=1), run)
        for step, value in ((2, None), (3, 0.5), (4, None)):
            callback.evaluated(journal.emit("evaluated", step=step, metrics={"r2": value}), run)
            assert not reasons
        callback.evaluated(journal.emit("evaluated", step=5, metrics={"r2": 0.4}), run)
    assert reasons == ["r2 is no better after 2 evaluations than 0.5"]
