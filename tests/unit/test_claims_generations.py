"""How both generations of the rule are compared: methods, grids, budgets and augmented images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.claims import c2, c3, c4, c5, generations
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.generations import Study, fit, with_grids
from benchmarks.claims.methods import READS_WEIGHTS, generation
from benchmarks.claims.networks import DEEP_MLP, DEEP_MLP_NORMALISED, VGG, VIT
from benchmarks.claims.storing import Places
from benchmarks.claims.training import augmented
from lowdimfa import InputError

pytestmark = pytest.mark.slow

STUDIES = {"C2": c2.STUDY, "C4": c4.STUDY, "C5": c5.STUDY}
each_study = pytest.mark.parametrize("name", STUDIES)


@each_study
def test_every_method_fits_its_network(name: str) -> None:
    study = STUDIES[name]
    (setting, *_) = study.networks
    labels = [method.label for method in study.methods(setting)]
    assert len(labels) == len(set(labels))
    assert {target.method for target in study.targets} <= set(labels)
    assert {label for pair in study.pairs for label in pair} <= set(labels)
    assert {method.label for method in study.core(setting)} <= set(labels)
    example = torch.randn(2, 3, 32, 32)
    for method in study.core(setting):
        model = method.applied(setting.network(), example, 0)
        assert model(example).shape == (2, 10)


def test_where_one_layer_is_restricted_all_others_are_exact() -> None:
    (method,) = c2.alone((10,), DEEP_MLP)[-1:]
    model = method.applied(DEEP_MLP.network(), torch.randn(2, 3072), 0)
    assert [name for name, module in model.named_modules() if hasattr(module, "feedback")] == [c2.ONE_LAYER]
    assert {*c2.EXACT, c2.ONE_LAYER} == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }


def test_the_classifier_and_the_embedding_are_exact_and_joint_projections_have_three_times_r() -> None:
    network = c4.shares(("local",), VGG)[0].applied(VGG.network(), torch.empty(0), 0)
    assert not hasattr(network.get_submodule("4.1"), "feedback")
    model = c5.chain((16,), VIT)[-1].applied(VIT.network(), torch.empty(0), 0)
    assert not hasattr(model.get_submodule(c5.EMBEDDING), "feedback")
    assert model.get_parameter("1.attention.qkv.feedback.P").shape[0] == 48
    assert model.get_parameter("1.expand.feedback.P").shape[0] == 16


@pytest.mark.parametrize("setting", [DEEP_MLP, DEEP_MLP_NORMALISED, VGG, VIT], ids=lambda one: one.label)
def test_both_generations_have_as_many_trials(setting: generations.Setting) -> None:
    found = with_grids(setting)
    grids = dict(found.grids)
    assert grids.keys() == {"normative", "local"}
    assert all(len(set(grid)) == generations.TRIALS for grid in (found.grid, *grids.values()))
    # No rule has a rate of the weights, or a decay of them, that others can't have.
    assert {frozenset(update.rate for update in grid) for grid in grids.values()} == {
        frozenset(update.rate for update in found.grid)
    }
    assert {frozenset(update.weight_decay for update in grid) for grid in grids.values()} == {
        frozenset(update.weight_decay for update in found.grid)
    }
    assert all(update.feedback_rate is None for update in found.grid)
    assert all(update.feedback_rate for update in grids["normative"])


def test_batch_normalisation_comes_before_every_relu() -> None:
    stages = list(DEEP_MLP_NORMALISED.network())
    for stage in stages[:-1]:
        assert [type(layer) for layer in stage][-3:] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert DEEP_MLP_NORMALISED.configuration()["model"].startswith(
        "benchmarks.claims.networks.normalised_mlp"
    )


@each_study
def test_a_budget_cuts_methods_then_epochs_then_samples_and_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study: Study = STUDIES[name]
    monkeypatch.setattr(generations, "seconds_per_step", lambda *_: 0.02 / generations.OVERHEAD)
    whole = sum(len(study.methods(network)) for network in study.networks)
    cells, cut = study.plan(RunSettings(seeds=1))
    assert len(cells) == whole and not cut
    steps = max(network.steps for network in study.networks)
    minutes = generations.TRIALS * 0.02 / 60 * whole * steps
    cells, cut = study.plan(RunSettings(seeds=1, budget_minutes=1.01 * minutes))
    assert len(cells) == whole and not cut
    cells, cut = study.plan(RunSettings(seeds=1, budget_minutes=0.5 * minutes))
    assert len(cells) == whole and cells[0][0].epochs < study.networks[0].epochs and cut
    cells, cut = study.plan(RunSettings(seeds=1, budget_minutes=0.002 * minutes))
    first = study.networks[0]
    assert len(cells) == len(study.core(first)) and len(cut) == 2
    assert cells[0][0].samples < first.samples and cells[0][0].epochs == generations.FEWEST_EPOCHS
    spent = sum(setting.steps for setting, _ in cells) * generations.TRIALS * 0.02 / 60
    assert 0.5 < spent / (0.002 * minutes) <= 1
    with pytest.raises(InputError, match="Give more minutes"):
        study.plan(RunSettings(seeds=1, budget_minutes=1e-5 * minutes))


@each_study
def test_the_core_is_what_the_targets_name_at_full_length(name: str) -> None:
    study: Study = STUDIES[name]
    cells, cut = study.plan(RunSettings(core=True))
    assert cut == [f"only {len(cells)} methods on one network"]
    assert {target.method for target in study.targets} < {method.label for _, method in cells}
    assert {setting.steps for setting, _ in cells} == {study.networks[0].steps}


def test_a_budget_shares_out_the_work_of_all_networks_of_c3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c3, "seconds_per_step", lambda *_: 0.02 / generations.OVERHEAD)
    monkeypatch.setattr(c3, "compare", lambda cells, _: {"cells": cells})
    whole = sum(setting.steps for setting, _ in c3.run(RunSettings())["cells"])
    minutes = 0.1 * generations.TRIALS * 0.02 / 60 * whole
    found = c3.run(RunSettings(seeds=1, budget_minutes=minutes))
    assert len(found["cut"]) == len(c3.TRIED)
    assert 0.05 * whole < sum(setting.steps for setting, _ in found["cells"]) <= 0.1 * whole


def test_the_tables_say_of_each_rule_what_its_page_says_of_the_weights_that_it_reads() -> None:
    page = (Places().docs / "chain-form.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    told = {
        row[0].strip("`"): row[-1] for row in rows if row[0].strip("`") in READS_WEIGHTS and len(row) == 4
    }
    assert set(told) == set(READS_WEIGHTS) - {"plain", "local loss"}
    for rule, words in told.items():
        assert words.startswith(READS_WEIGHTS[rule].partition(",")[0]), rule


def test_epochs_are_as_asked_and_refreshes_twice_in_each() -> None:
    cells, _ = c2.STUDY.plan(RunSettings(epochs=7))
    assert {setting.epochs for setting, _ in cells} == {7}
    found = generation("normative", 10, 320)
    assert found.refresh_every == 160 and found.configuration()["refresh_every"] == 160
    fitted = fit(replace(DEEP_MLP, epochs=2), 100, [])
    assert fitted.epochs == 2 and fitted.steps == 100


def test_augmented_images_are_crops_some_of_them_flipped() -> None:
    images = torch.arange(1.0, 1 + 64 * 2 * 6 * 5).view(64, 2, 6, 5)
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    flips = 0
    for crop, whole in zip(found, padded, strict=True):
        windows = [whole[:, top : top + 6, left : left + 5] for top in range(9) for left in range(9)]
        straight = any(torch.equal(crop, window) for window in windows)
        mirrored = any(torch.equal(crop, window.flip(-1)) for window in windows)
        assert straight or mirrored
        flips += mirrored and not straight
    assert 10 < flips < 54
    assert torch.equal(found, augmented(images, torch.Generator().manual_seed(0)))
