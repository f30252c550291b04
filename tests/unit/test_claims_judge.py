"""Verdicts follow from the numbers: results made up for each verdict of each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.claims import c2, c3, c4, c5, c6, c8
from benchmarks.claims.comparison import POINTS, behind, comparison_table, gap_between
from benchmarks.claims.methods import BACKPROP, KOLEN_POLLACK, chain, direct
from benchmarks.claims.networks import DIRECT_ERROR_DIMS

Means = Mapping[str, float]


def scores(mean: float) -> list[float]:
    """Return three seeds with a standard error of 0.06."""
    return [mean - 0.1, mean, mean + 0.1]


def result(*networks: tuple[str, Means]) -> dict[str, Any]:
    """Return the part of a result that verdicts are computed from."""
    return {
        "summary": {
            name: {
                method: {"rate": 1e-3, "weight_decay": 0.01, "scores": scores(mean)}
                for method, mean in means.items()
            }
            for name, means in networks
        }
    }


def over_r(means: Mapping[int, float], backprop: float, full: float) -> Means:
    return {
        BACKPROP.label: backprop,
        KOLEN_POLLACK.label: full,
        **{chain(r).label: mean for r, mean in means.items()},
    }


@pytest.mark.parametrize(
    ("means", "backprop", "full", "verdict"),
    [
        ({1: 20, 2: 30, 4: 40, 10: 49.8, 64: 50}, 50, 50, "reproduced"),
        ({1: 20, 2: 30, 4: 40, 10: 45.0, 64: 46}, 50, 47, "partly"),  # smaller r costs, r = 10 is behind
        ({1: 49, 2: 49.6, 4: 49.8, 10: 49.8, 64: 50}, 50, 50, "partly"),  # r = 10 matches, r = 4 too
        ({1: 39, 2: 39.8, 4: 40, 10: 39.8, 64: 40}, 50, 40, "partly"),  # the rank isn't the limit
        ({1: 40, 2: 40, 4: 40, 10: 40, 64: 40}, 50, 45, "not reproduced"),
    ],
)
def test_c2(means: dict[int, float], backprop: float, full: float, verdict: str) -> None:
    longer = over_r({10: means[10] + 1}, backprop + 1, full + 1)
    made_up = result(("MLP", over_r(means, backprop, full)), ("longer", longer))
    made_up["configuration"] = {"networks": {"MLP": {"steps": 100}, "longer": {"steps": 300}}}
    found, reason = c2.judge(made_up)
    assert found == verdict
    assert f"{means[10]:.1f} %" in reason
    assert f"{backprop - means[10]:.2f} after 300" in reason


def c3_result(sufficient: Mapping[tuple[int, int], int], high: float) -> dict[str, Any]:
    """Return a result where backpropagation has 50 %, high ``r`` has so much, and so does every sufficient one."""
    networks = []
    for (width, classes), enough in sufficient.items():
        means = {r: high if r >= enough else 30.0 for r in c3.TRIED[classes]}
        networks.append((c3.setting_of(width, classes).label, over_r(means, 50, 50)))
    return result(*networks)


def cells(*narrow_then_wide: int) -> dict[tuple[int, int], int]:
    keys = [(width, classes) for width in c3.WIDTHS for classes in c3.TRIED]
    return dict(zip(keys, narrow_then_wide, strict=True))


@pytest.mark.parametrize(
    ("sufficient", "high", "verdict"),
    [
        (cells(1, 2, 10, 1, 2, 10), 50, "reproduced"),
        (cells(1, 5, 10, 1, 2, 4), 49.8, "reproduced"),
        (cells(1, 2, 10, 1, 2, 10), 45, "partly"),  # behind backpropagation, but not behind a high r
        (cells(64, 64, 64, 64, 64, 64), 50, "not reproduced"),
        (cells(1, 2, 10, 1, 2, 64), 50, "not reproduced"),  # grows with the width, and above the classes
    ],
)
def test_c3(sufficient: dict[tuple[int, int], int], high: float, verdict: str) -> None:
    assert c3.judge(c3_result(sufficient, high))[0] == verdict


def test_c3_needs_every_larger_error_dimension_to_suffice_too() -> None:
    means = {1: 50.0, 2: 45.0, 5: 49.9, c3.HIGH: 50.0}
    found = result(("MLP", over_r(means, 50, 50)))
    gaps = {r: behind(found, "MLP", chain(r).label) for r in means}
    assert c3.sufficient(gaps) == 5
    assert c3.sufficient({1: gaps[1], c3.HIGH: gaps[2]}) is None


@pytest.mark.parametrize(
    ("shares", "full", "verdict"),
    [
        ((60, 59.8, 59.7), 60, "reproduced"),
        ((59.8, 58, 55), 59, "partly"),
        ((57, 57, 57), 57, "partly"),
        ((57, 56, 55), 58, "not reproduced"),
    ],
)
def test_c4(shares: Sequence[float], full: float, verdict: str) -> None:
    means = {method.label: mean for method, mean in zip(c4.SHARES, shares, strict=True)}
    means |= {method.label: 58.5 for method in c4.ALIGNED}
    found = result(("CNN", {BACKPROP.label: 60, KOLEN_POLLACK.label: full, **means}))
    found_verdict, reason = c4.judge(found)
    assert found_verdict == verdict
    assert "transposed weights, behind backpropagation: 1.50 at r = 0.5 of the channels" in reason


@pytest.mark.parametrize(
    ("best", "full", "verdict"), [(79.7, 80, "reproduced"), (77, 77.3, "partly"), (77, 79, "not reproduced")]
)
def test_c5(best: float, full: float, verdict: str) -> None:
    means = {r: best - 3 * (r < max(c5.ERROR_DIMS)) for r in c5.ERROR_DIMS}
    aligned = {method.label: 78.0 for method in c5.ALIGNED}
    found, reason = c5.judge(result(("ViT", {**over_r(means, 80, full), **aligned})))
    assert found == verdict
    assert "transposed weights, behind backpropagation: 2.00 at r = 4" in reason


@pytest.mark.parametrize(
    ("behind_by", "verdict"),
    [
        ((0, -3, 0.3, 0.1), "reproduced"),
        ((2, 2, 0.3, 0.1), "partly"),
        ((2, 2, 2, 2), "not reproduced"),
    ],
)
def test_c6(behind_by: Sequence[float], verdict: str) -> None:
    means = {BACKPROP.label: 50.0}
    for r, gap in zip(DIRECT_ERROR_DIMS, behind_by, strict=True):
        means |= {chain(r).label: 40.0, direct(r).label: 40.0 - gap}
    found = result(("MLP", means))
    assert c6.judge(found)[0] == verdict
    assert c6.tables(found).count("| yes ") == sum(gap <= POINTS for gap in behind_by)


@pytest.mark.parametrize(
    ("low", "high", "exact", "verdict"),
    [
        ((0.5, 0.4), 0.2, 0.2, "reproduced"),
        ((0.5, 0.2), 0.2, 0.2, "partly"),
        ((0.2, 0.2), 0.2, 0.3, "not reproduced"),
    ],
)
def test_c8(low: Sequence[float], high: float, exact: float, verdict: str) -> None:
    means = dict.fromkeys((method.label for method in c8.METHODS), 0.2)
    means |= {chain(r).label: mean for r, mean in zip(c8.LOW, low, strict=True)}
    means |= {chain(c8.HIGH).label: high, BACKPROP.label: exact}
    spread = (-0.01, 0.0, 0.01)
    summary = {
        label: {
            "centre_surround": [mean + part for part in spread],
            "oriented": [0.3],
            "rank": [2.0],
            "validation": [40.0],
        }
        for label, mean in means.items()
    }
    assert c8.judge({"summary": summary})[0] == verdict


def test_a_gap_counts_as_none_within_half_a_point_or_two_standard_errors() -> None:
    assert gap_between(scores(50), scores(49.5)).matches
    assert not gap_between(scores(50), scores(49.4)).matches
    noisy = [47.0, 49.0, 51.0]  # standard error 2 / √3; of the difference 1.156
    gap = gap_between(scores(51), noisy)
    assert gap.tolerance == pytest.approx(2 * (4 / 3 + 0.01 / 3) ** 0.5)
    assert gap.matches
    assert gap_between(noisy, scores(60)).matches
    assert gap_between(noisy, scores(60)).points == pytest.approx(-11)


def test_a_table_has_mean_spread_gap_and_seeds() -> None:
    found = result(("MLP", {BACKPROP.label: 50, "other": 48}))
    row = comparison_table(found, "MLP").splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "other",
        "48.00 ± 0.10",
        "2.00",
        "0.50",
        "no",
        "0.001",
        "0.01",
        "3",
    ]
