"""Verdicts follow from the numbers: results made up for each verdict of each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.claims import c2, c3, c4, c5, c6, c8
from benchmarks.claims.comparison import (
    POINTS,
    behind,
    comparison_table,
    epochs_to,
    gap_between,
    operations_to,
)
from benchmarks.claims.generations import Study
from benchmarks.claims.methods import BACKPROP, GENERATIONS, direct, generation_label
from benchmarks.claims.networks import DIRECT_ERROR_DIMS, MLP

Means = Mapping[str, float]


def scores(mean: float) -> list[float]:
    """Return three seeds with a standard error of 0.06."""
    return [mean - 0.1, mean, mean + 0.1]


def result(*networks: tuple[str, Means]) -> dict[str, Any]:
    """Return the part of a result that verdicts are computed from."""
    return {
        "runs": [],
        "configuration": {
            "methods": {method: {"rule": "sign-symmetry"} for _, means in networks for method in means}
        },
        "summary": {
            name: {
                method: {"rate": 1e-3, "weight_decay": 0.01, "scores": scores(mean)}
                for method, mean in means.items()
            }
            for name, means in networks
        },
    }


@pytest.mark.parametrize(
    ("targets", "first", "verdict"),
    [
        ((49.8, 49.6, 49.9, 50.2), 45, "reproduced"),
        ((49.8, 49.6, 49.9, 48.0), 45, "partly"),
        ((48, 48, 48, 48), 45, "partly"),  # behind backpropagation, but ahead of the first generation
        ((44, 44, 44, 44), 45, "not reproduced"),
    ],
)
@pytest.mark.parametrize("study", [c2.STUDY, c4.STUDY, c5.STUDY], ids=["C2", "C4", "C5"])
def test_studies_of_both_generations(
    study: Study, targets: Sequence[float], first: float, verdict: str
) -> None:
    means = {BACKPROP.label: 50.0, **{label: first for _, label in study.pairs}}
    means |= {label: targets[-1] for label, _ in study.pairs}
    chosen = targets[-len(study.targets) :]
    means |= {target.method: mean for target, mean in zip(study.targets, chosen, strict=True)}
    found, reason = study.judge(result(("network", means)))
    assert found == verdict
    assert f"{study.targets[0].method}: {50 - chosen[0]:.2f}" in reason
    ahead = means[study.pairs[0][0]] - first
    assert f"{study.pairs[0][0]} {abs(ahead):.2f} {'ahead of' if ahead > 0 else 'behind'} " in reason


def test_operations_are_counted_until_backpropagation_s_accuracy_less_half_a_point() -> None:
    found = result(("network", {BACKPROP.label: 50.0, "fast": 50.0, "slow": 50.0}))
    methods = found["summary"]["network"]
    methods[BACKPROP.label]["curves"] = [[30.0, 49.6, 50.0], [30.0, 40.0, 50.0]]
    methods["fast"]["curves"] = [[49.5, 49.4, 50.0], [49.4, 49.5, 50.0]]
    methods["slow"]["curves"] = [[30.0, 50.0, 50.0], [30.0, 40.0, 49.4]]
    found["operations"] = {"network": {BACKPROP.label: 100, "fast": 80, "slow": 50}}
    assert epochs_to(found, "network", BACKPROP.label) == 2.5
    assert epochs_to(found, "network", "fast") == 1.5
    assert epochs_to(found, "network", "slow") is None  # one of its seeds never gets there
    assert operations_to(found, "network", "fast") == 1.5 * 80 / (2.5 * 100)
    assert operations_to(found, "network", "slow") is None
    rows = [
        [cell.strip() for cell in line.split("|")] for line in comparison_table(found, "network").splitlines()
    ]
    places = rows[0].index("epochs to there"), rows[0].index("operations")
    assert [[row[place] for place in places] for row in rows[2:]] == [
        ["2.5", "1.00"],
        ["1.5", "0.48"],
        ["", ""],
    ]


def test_targets_that_were_cut_are_not_judged() -> None:
    study, label = c2.STUDY, c2.STUDY.targets[0].method
    assert study.judge(result(("network", {BACKPROP.label: 50, label: 50})))[0] == "reproduced"
    assert study.judge(result(("network", {BACKPROP.label: 50})))[0] == "not reproduced"


def c3_result(sufficient: Mapping[tuple[int, int], int], rules: Sequence[str]) -> dict[str, Any]:
    """Return a result where backpropagation has 50 %, and so has every sufficient ``r`` by some rules, others 30 %."""
    networks = []
    for (width, classes), enough in sufficient.items():
        means = {BACKPROP.label: 50.0}
        for rule in GENERATIONS:
            means |= {
                generation_label(rule, r): 50.0 if r >= enough and rule in rules else 30.0
                for r in c3.TRIED[width, classes]
            }
        networks.append((c3.setting_of(width, classes).label, means))
    return result(*networks)


def cells(*by_width_then_classes: int) -> dict[tuple[int, int], int]:
    return dict(zip(c3.TRIED, by_width_then_classes, strict=True))


@pytest.mark.parametrize(
    ("sufficient", "rules", "verdict"),
    [
        (cells(1, 2, 10, 1, 2, 10, 1, 2, 10), c3.SECOND, "reproduced"),
        (cells(2, 10, 40, 1, 5, 40, 1, 2, 20), c3.SECOND, "reproduced"),
        (cells(1, 2, 10, 1, 2, 10, 1, 2, 10), ("local",), "partly"),
        (cells(1, 2, 10, 1, 2, 20, 1, 2, 40), c3.SECOND, "partly"),  # grows with the width
        (cells(64, 64, 64, 64, 64, 64, 64, 64, 64), c3.SECOND, "not reproduced"),
        (cells(1, 2, 10, 1, 2, 10, 1, 2, 10), ("low-dimensional",), "not reproduced"),
    ],
)
def test_c3(sufficient: dict[tuple[int, int], int], rules: Sequence[str], verdict: str) -> None:
    found, reason = c3.judge(c3_result(sufficient, rules))
    assert found == verdict
    if "local" in rules:
        smallest = ", ".join(str(sufficient[128, classes]) for classes in (2, 5, 10))
        assert f"local: {smallest} (128)" in reason


def test_c3_judges_what_a_core_has_alone() -> None:
    enough = {(128, 2): 1, (128, 10): 10, (512, 2): 1, (512, 10): 20}
    found = c3_result(enough, c3.SECOND)
    first = [generation_label("low-dimensional", r) for r in (1, 2, 4, 10, 20, 40, 64)]
    for methods in found["summary"].values():
        for label in first:
            methods.pop(label, None)
    verdict, reason = c3.judge(found)
    assert verdict == "partly"  # grows with the width
    assert "for 2, 10 classes" in reason and "local: 1, 10 (128), 1, 20 (512)" in reason
    assert "first generation" not in reason


def test_c3_needs_every_larger_error_dimension_to_suffice_too() -> None:
    means = {1: 50.0, 2: 45.0, 5: 49.9, 64: 50.0}
    labels = {r: generation_label("local", r) for r in means}
    found = result(("MLP", {BACKPROP.label: 50, **{labels[r]: mean for r, mean in means.items()}}))
    gaps = {r: behind(found, "MLP", labels[r]) for r in means}
    assert c3.sufficient(gaps) == 5
    assert c3.sufficient({1: gaps[1], 64: gaps[2]}) is None


@pytest.mark.parametrize(
    ("behind_by", "verdict"),
    [
        ((0, -3, 0.3, 0.1), "reproduced"),
        ((2, 2, 0.3, 0.1), "partly"),
        ((2, 2, 2, 2), "not reproduced"),
    ],
)
@pytest.mark.parametrize("rule", GENERATIONS)
def test_c6(rule: str, behind_by: Sequence[float], verdict: str) -> None:
    """The direct form is behind one rule of the chain form, and level with, or as far behind, the others."""
    means = {BACKPROP.label: 50.0}
    for r, gap in zip(DIRECT_ERROR_DIMS, behind_by, strict=True):
        level = verdict != "not reproduced"
        means |= {generation_label(one, r): 40.0 - gap * (level and one != rule) for one in GENERATIONS}
        means[direct(r).label] = 40.0 - gap
    found = result(("MLP", means))
    assert c6.judge(found)[0] == verdict
    near = sum(gap <= POINTS for gap in behind_by)
    assert c6.tables(found).count(": yes ") == near + 2 * (4 if verdict != "not reproduced" else near)


@pytest.mark.parametrize(
    ("low", "high", "exact", "best", "verdict"),
    [
        ((0.5, 0.4), 0.2, 0.2, True, "reproduced"),
        ((0.5, 0.4), 0.2, 0.2, False, "partly"),
        ((0.5, 0.2), 0.2, 0.2, True, "partly"),
        ((0.2, 0.2), 0.2, 0.3, True, "not reproduced"),
    ],
)
@pytest.mark.parametrize("rule", GENERATIONS)
def test_c8(rule: str, low: Sequence[float], high: float, exact: float, best: bool, verdict: str) -> None:
    means = dict.fromkeys((method.label for method in c8.methods(MLP)), 0.2)
    means |= {generation_label(rule, r): mean for r, mean in zip(c8.LOW, low, strict=True)}
    means |= {generation_label(rule, c8.HIGH): high, BACKPROP.label: exact}
    accuracies = dict.fromkeys(means, 40.0) | {generation_label(rule, c8.HIGH): 41.0 if best else 39.0}
    spread = (-0.01, 0.0, 0.01)
    summary = {
        label: {
            "centre_surround": [mean + part for part in spread],
            "oriented": [0.3],
            "rank": [2.0],
            "validation": [accuracies[label]],
        }
        for label, mean in means.items()
    }
    assert c8.judge({"summary": summary})[0] == verdict


def test_a_gap_counts_as_none_within_half_a_point_or_two_standard_errors() -> None:
    assert gap_between(scores(50), scores(49.5)).matches
    assert not gap_between(scores(50), scores(49.4)).matches
    noisy = [48.0, 49.0, 50.0]  # standard error 1 / √3; of the difference 0.58
    gap = gap_between(scores(50), noisy)
    assert gap.tolerance == pytest.approx(2 * (1 / 3 + 0.01 / 3) ** 0.5)
    assert gap.matches
    scattered = gap_between([29.0, 49.0, 69.0], scores(48))
    assert scattered.tolerance == 2
    assert not scattered.matches and scattered.in_words == "can't tell"
    assert gap_between([29.0, 49.0, 69.0], scores(40)).in_words == "no"
    assert gap.in_words == "yes"
    assert gap_between(noisy, scores(60)).matches
    assert gap_between(noisy, scores(60)).points == pytest.approx(-11)


def test_a_table_has_mean_spread_gap_and_seeds() -> None:
    found = result(("MLP", {BACKPROP.label: 50, "other": 48}))
    row = comparison_table(found, "MLP").splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "other",
        "their signs, at every step",
        "48.00 ± 0.10",
        "2.00",
        "0.50",
        "no",
        "0.001",
        "0.01",
        "3",
    ]
