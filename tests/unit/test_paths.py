"""Paths as people write them, and the directory of a new run."""

from __future__ import annotations

import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from lowdimfa.data.sources import SOURCES, data_folder
from lowdimfa.errors import InputError
from lowdimfa.paths import appearing, expand
from lowdimfa.services.cli.options import expanded
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.run_dir import new_run_dir, require_run_dir, reserved
from lowdimfa.services.trainer.stopping import stopped

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": 2, "batch_size": 16},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "some where")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/runs", "{home}/runs"),
        ("$HOME/x", "{home}/x"),
        ("${HOME}s/$PLACE", "{home}s/some where"),
        ("a$b c/$", None),
        ("price$", "price$"),
        ("plain/path", "plain/path"),
    ],
)
def test_home_and_variables_are_filled_in(tmp_path: Path, written: str, path: str | None) -> None:
    if path is None:
        with pytest.raises(ValueError, match=r"^\$b is not set$"):
            expand(written)
    else:
        assert str(expand(written)) == path.format(home=tmp_path)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("$NOWHERE/x", "$NOWHERE is not set"),
        ("${NOWHERE}", "${NOWHERE} is not set"),
        ("$EMPTY/x", "$EMPTY is empty"),
        ("~nobody-of-this-name/x", "the home folder of ~nobody-of-this-name is not known"),
        ("a\0b", "a null character"),
    ],
)
def test_what_is_not_known_is_refused_by_name_wherever_a_path_is_taken(
    written: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as storage:
        new_run_dir(written, "name")
    with pytest.raises(InputError) as folder:
        data_folder(SOURCES["fashion_mnist"], written)
    with pytest.raises(typer.BadParameter) as option:
        expanded(written)
    assert storage.value.message.startswith("run.storage: found ")
    for message in (storage.value.message, folder.value.message, option.value.message):
        assert reason in message


def test_two_runs_of_one_second_both_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20261128-120000")
    settings = SPECIFICATION | {"run": {"storage": "$HOME/runs", "tensorboard": False}}
    trainers = [DecoupledTrainer(settings, engine="local") for _ in range(2)]
    assert not (tmp_path / "runs").exists()
    results = [trainer.fit() for trainer in trainers]
    runs = tmp_path / "runs"
    assert [result.path for result in results] == [
        runs / "run-20261128-120000",
        runs / "run-20261128-120000-2",
    ]
    assert all(result.metrics["steps"] == 2 for result in results)
    with pytest.raises(InputError, match="already there"):
        trainers[0].fit()


def test_a_name_is_had_by_one_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: _take(tmp_path / "runs" / "a"), range(24)))
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == sorted(["a", *(f"a-{number}" for number in range(2, 25))])


def _take(path: Path) -> None:
    with reserved(path) as own:
        (own / "run.lock").touch()


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    wrong = SPECIFICATION | {"run": {"storage": "new/runs"}, "model": SPECIFICATION["model"] | {"blocks": 50}}
    with pytest.raises(InputError):
        DecoupledTrainer(wrong, engine="local").fit()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file.*run\.storage"):
        DecoupledTrainer(SPECIFICATION | {"run": {"storage": "file/runs"}}, engine="local").fit()


def test_a_run_is_refused_where_no_file_of_weights_can_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\?: found a name that is no UTF-8"):
        require_run_dir(tmp_path / os.fsdecode(b"run\xff"), resume=False)


def test_the_hint_to_resume_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "it's a run; $HOME"
    monkeypatch.setattr(CheckpointStore, "list", lambda self: [7])
    _, _, options = stopped(run_dir).message.partition("with ")
    assert shlex.split(options) == ["--resume", "--run-dir", str(run_dir)]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with appearing(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "inner" / "file").read_text() == "whole"
    with pytest.raises(KeyError), appearing(tmp_path / "other") as folder:
        (folder / "file").write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
