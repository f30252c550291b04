"""The claims that train networks, at a size of seconds: what is stored, and what is never looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.claims import c2, c3, c4, c5, c6, c8, settings
from benchmarks.claims.__main__ import main
from benchmarks.claims.cache import RunCache
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.comparison import compare
from benchmarks.claims.generations import TRIALS, with_grids
from benchmarks.claims.methods import BACKPROP, GENERATIONS, LOCAL, generation
from benchmarks.claims.settings import Setting, Update
from benchmarks.claims.storing import Places
from benchmarks.claims.trials import Trial, runs_of
from lowdimfa.data import Dataset, TensorSplit, teacher
from lowdimfa.models import cnn, mlp, vit

pytestmark = pytest.mark.slow

GRID = (Update(1e-3), Update(3e-3), Update(1e-2, 1.0))


def images() -> Dataset:
    """Return random pictures of 10 classes."""
    flat = teacher(3 * 32 * 32, samples=240, test_samples=40)
    train, test = (
        TensorSplit(split.input_data.view(-1, 3, 32, 32), split.target_data)
        for split in (flat.train, flat.test)
        if isinstance(split, TensorSplit)
    )
    return Dataset("images", train, test, flat.task)


def tiny_mlp(width: int = 16, classes: int = 10, samples: int = 320, epochs: int = 1) -> Setting:
    """Return a network that trains in a moment."""
    label = f"MLP, {width} wide, {classes} classes"
    return Setting(label, mlp, (32, width, 4, classes), "teacher", 128, 1, 32, GRID, classes)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the networks and data of all claims by small ones."""
    settings.load_data.cache_clear()
    monkeypatch.setitem(settings.DATA, "images", images)
    monkeypatch.setattr(c6, "MLP", tiny_mlp())
    monkeypatch.setattr(c3, "fully_connected", tiny_mlp)
    pictures = Setting("MLP on images", mlp, (3072, 8, 4, 10), "images", 128, 1, 32, GRID)
    monkeypatch.setattr(c8, "MLP", pictures)
    deep = replace(tiny_mlp(), arguments=(32, 16, 5, 10), epochs=2)
    conv = replace(
        pictures, label="CNN", model=cnn, arguments=(3, (4, 4, 8, 8), 10, 32, 1, 0.1), is_augmented=True
    )
    transformer = replace(conv, label="ViT", model=vit, arguments=(32, 16, 3, 8, 1, 2, 10))
    for module, setting in ((c2, deep), (c4, conv), (c5, transformer)):
        study = replace(module.STUDY, networks=(setting,))
        monkeypatch.setattr(module, "CLAIM", replace(module.CLAIM, run=study.run, judge=study.judge))
    yield
    settings.load_data.cache_clear()


def places_in(folder: Path) -> Places:
    return Places(folder / "results", folder / "docs", folder / "runs.jsonl")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one update to try, and one class for each end of C3."""
    monkeypatch.setattr(c6, "MLP", replace(c6.MLP, grid=GRID[:1]))
    monkeypatch.setattr(c2, "ERROR_DIMS", (10, 40))
    monkeypatch.setattr(c4, "SHARES", (0.5, 0.25))
    monkeypatch.setattr(c5, "ERROR_DIMS", (10, 48))
    tried = {(width, classes): (1, 10)[: classes - 1] for width in (16, 24) for classes in (2, 10)}
    monkeypatch.setattr(c3, "TRIED", tried)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C5", "C6", "C8"])
def test_claim_is_run_stored_drawn_and_judged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = places_in(tmp_path)
    assert main([name, "--seeds", "2", "--device", "cpu", "--json"], places) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])[name]
    stored = json.loads((places.results / f"claim-{name}.json").read_text())
    assert line["verdict"] in ("reproduced", "partly", "not reproduced")
    assert {key: line[key] for key in stored} == stored
    assert stored["seeds"] == 2
    assert stored["environment"]["device"] == "cpu"
    assert {run["seed"] for run in stored["runs"]} == {0, 1}
    assert places.figure(f"claim-{name}").stat().st_size > 1000
    assert line["reason"] in (places.docs / "results.md").read_text()


def test_every_method_has_the_same_number_of_trials_and_one_test_accuracy_per_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = (BACKPROP, LOCAL, *(generation(rule, 4, 4) for rule in GENERATIONS))
    setting = with_grids(replace(tiny_mlp(), epochs=2))
    found = compare([(setting, method) for method in methods], RunSettings(seeds=3))
    by_method: dict[tuple[str, str], list[Any]] = {}
    for run in found["runs"]:
        by_method.setdefault((run["setting"], run["method"]), []).append(run)
    assert {len(runs) for runs in by_method.values()} == {TRIALS + 2}
    for runs in by_method.values():
        tested = [run for run in runs if run["test"] is not None]
        assert [run["seed"] for run in tested] == [0, 1, 2]
        first = [run for run in runs if run["seed"] == 0]
        best = max(first, key=lambda run: run["validation"])
        chosen = ("rate", "weight_decay", "feedback_rate")
        assert {tuple(run[key] for key in chosen) for run in tested} == {tuple(best[key] for key in chosen)}
        assert all(
            (run["best"] is None) == (run["test"] is None) for run in runs if run["method"] != LOCAL.label
        )


def test_the_test_split_is_seen_only_with_the_chosen_update(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []
    plain = Trial._score

    def spy(self: Trial, split: Any) -> float:
        if split is self.setting.dataset().test:
            seen.append((self.update.rate, self.seed))
        return plain(self, split)

    monkeypatch.setattr(Trial, "_score", spy)
    runs = runs_of(tiny_mlp(), BACKPROP, RunSettings(seeds=2))
    (chosen,) = {run.rate for run in runs if run.test is not None}
    assert seen == [(chosen, 0), (chosen, 1)]


def test_validation_samples_are_neither_trained_on_nor_tested_on() -> None:
    whole = tiny_mlp().dataset()
    split = whole.with_validation(settings.VALIDATION)
    assert len(split.train) + len(split.test) == len(whole.train)
    trained = {tuple(row.tolist()) for row in split.train.inputs(torch.arange(len(split.train)))}
    held_out = {tuple(row.tolist()) for row in split.test.inputs(torch.arange(len(split.test)))}
    assert not trained & held_out


def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    setting, method = tiny_mlp(), generation("low-dimensional", 4, 4)
    expected = runs_of(setting, method, RunSettings(seeds=2, cache=RunCache(path)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])  # killed while it wrote its third line
    trained: list[tuple[float, int]] = []
    property_: Any = Trial.trained
    plain = property_.func

    def spy(self: Trial) -> Any:
        trained.append((self.update.rate, self.seed))
        return plain(self)

    monkeypatch.setattr(property_, "func", spy)
    again = runs_of(setting, method, RunSettings(seeds=2, cache=RunCache(path)))
    assert [replace(run, seconds=0) for run in again] == [replace(run, seconds=0) for run in expected]
    best = next(run.rate for run in expected if run.test is not None)
    assert (GRID[2].rate, 0) in trained
    assert (best, 1) in trained
    assert len(trained) == 2 + (best != GRID[2].rate)  # the chosen one again, unless it was the third
    trained.clear()
    assert runs_of(setting, method, RunSettings(seeds=2, cache=RunCache(path))) == again
    assert trained == []
    runs_of(setting, method, RunSettings(seeds=2, cache=RunCache(path, fresh=True)))
    assert len(trained) == len(GRID) + 1


def test_several_processes_make_the_same_runs_and_keep_them_in_one_file(tmp_path: Path) -> None:
    cells = [
        (tiny_mlp(), BACKPROP),
        (tiny_mlp(), generation("low-dimensional", 4, 4)),
        (tiny_mlp(24), BACKPROP),
    ]
    path = tmp_path / "runs.jsonl"
    together = RunSettings(seeds=2, cache=RunCache(path), processes=2)
    found = compare(cells, together)["runs"]
    alone = compare(cells, RunSettings(seeds=2))["runs"]
    assert [{**run, "seconds": 0} for run in found] == [{**run, "seconds": 0} for run in alone]
    assert compare(cells, replace(together, processes=1))["runs"] == found  # by what the processes had kept
    assert compare(cells, RunSettings(seeds=2, cache=RunCache(path)))["runs"] == found


def test_claims_that_share_a_network_train_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c6, "DIRECT_ERROR_DIMS", (1, 10))
    shared = RunSettings(seeds=1)
    first = compare([(tiny_mlp(), BACKPROP), (tiny_mlp(), generation("low-dimensional", 10, 4))], shared)
    second = c6.run(shared)
    by_key = {(run["method"], run["rate"], run["weight_decay"]): run for run in first["runs"]}
    again = [run for run in second["runs"] if (run["method"], run["rate"], run["weight_decay"]) in by_key]
    assert len(again) == len(GRID) * 2
    assert all(run == by_key[run["method"], run["rate"], run["weight_decay"]] for run in again)
