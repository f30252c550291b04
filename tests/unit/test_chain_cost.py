"""What a step of the chain form costs: counts against formulae, and the claim made from them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import rule_costs
from benchmarks.claims import c7
from benchmarks.claims.claim import RunSettings
from benchmarks.claims.comparison import Gap, behind
from benchmarks.claims.step_costs import Network, by_hand, counted
from benchmarks.claims.storing import Places, stored
from lowdimfa.models import cnn, mlp, vit

pytestmark = pytest.mark.slow

NETWORKS = {
    "mlp": Network("mlp", mlp, (48, 32, 4, 10), (3, 4, 4), 16, {"r = 4": 4}, "3.0", "C2"),
    "cnn": Network("cnn", cnn, (3, (16, 8, 24), 10, 8, 2), (3, 8, 8), 3, {"r = 1/4": 0.25}, "3.1", "C4"),
    "vit": Network("vit", vit, (8, 4, 3, 16, 1, 2, 10), (3, 8, 8), 70, {"r = 4": 4}, "2.2", "C5"),
}


@pytest.mark.parametrize("error_dim", [None, 0.25, 12, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_counted_operations_are_those_of_the_formulae(name: str, error_dim: float | None) -> None:
    found, expected = counted(NETWORKS[name], error_dim), by_hand(NETWORKS[name], error_dim)
    assert found["forward"] == expected.pop("forward") > 0
    assert found["backward"] == sum(expected.values()) > 0


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Return a result as it comes back from its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c7, "REPETITIONS", 2)
        found = c7.run(RunSettings(), NETWORKS.values())
    stored: dict[str, Any] = json.loads(json.dumps(found))
    return stored


def test_a_result_has_every_method_with_its_ratios(result: dict[str, Any]) -> None:
    for network in NETWORKS.values():
        methods = result["summary"][network.label]
        assert list(methods) == ["backpropagation", *network.error_dims]
        exact, *others = methods.values()
        assert exact["saved"] == 0 and set(exact["time_ratio"].values()) == {1.0}
        assert all(0 < other["saved"] < 1 / 3 and other["agree"] for other in others)
        assert all(len(entry["seconds"]["backward"]) == 2 for entry in result["runs"])


def test_tables_and_figure_show_every_method(result: dict[str, Any]) -> None:
    text, figure = c7.tables(result), c7.draw(result)
    assert len(figure.axes) == len(NETWORKS)
    for axis, network in zip(figure.axes, NETWORKS.values(), strict=True):
        assert f"{network.label}, batch {network.batch_size}" in text
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["backpropagation", *network.error_dims]


def saving(result: dict[str, Any], shares: list[float]) -> dict[str, Any]:
    """Return the result with other savings, one for each network."""
    changed: dict[str, Any] = json.loads(json.dumps(result))
    for methods, share in zip(changed["summary"].values(), shares, strict=True):
        list(methods.values())[1]["saved"] = share
    return changed


def test_the_verdict_follows_savings_and_the_accuracy_of_the_same_rule_at_the_same_r(
    result: dict[str, Any],
) -> None:
    first, second, third = result["summary"]
    methods = {name: list(found)[1] for name, found in result["summary"].items()}
    level, lower = Gap(0.4, 0.5), Gap(2.0, 0.5)
    cases = [
        ([0.25, 0.1, 0.1], {first: {methods[first]: level}}, "reproduced"),
        ([0.25, 0.1, 0.1], {first: {methods[first]: lower}}, "partly"),
        ([0.25, 0.1, 0.1], {first: {"another": level}, second: {methods[second]: level}}, "partly"),
        ([0.25, 0.21, 0.2], {second: {methods[second]: level}}, "reproduced"),
        ([0.1, 0.2, 0.1], {first: {methods[first]: level}, third: {methods[third]: level}}, "not reproduced"),
    ]
    for shares, gaps, expected in cases:
        verdict, reason = c7.judge_with(saving(result, shares), gaps, {})
        assert verdict == expected
        assert ("nowhere." in reason) == (expected == "not reproduced")
    for share, expected in ((0.79, "reproduced"), (0.81, "partly")):
        verdict, reason = c7.judge_with(saving(result, [0.25, 0.1, 0.1]), {}, {"C4": ("local", share)})
        assert verdict == expected and f"{share:.2f} of backpropagation's by local (C4)" in reason


def test_gaps_are_those_of_the_first_generation_at_the_r_that_is_counted() -> None:
    places = Places()
    found = c7.accuracy_gaps(places)
    c2 = stored("C2", places)
    assert c2 is not None
    name = next(iter(c2["summary"]))
    mlp = found["MLP, 3 × 2048"]
    assert mlp["r = 10"] == behind(c2, name, "first generation, r = 10")
    assert set(found) == {network.label for network in c7.NETWORKS}


def test_counts_that_differ_from_the_formulae_are_never_a_success(result: dict[str, Any]) -> None:
    result = saving(result, [0.3] * 3)
    result["summary"]["cnn"]["r = 1/4"]["agree"] = False
    verdict, reason = c7.judge_with(result, {}, {"C4": ("local", 0.5)})
    assert verdict == "not reproduced" and "cnn" in reason


def test_shapes_alone_are_inferred_without_computing() -> None:
    layer = NETWORKS["mlp"].build(4).to("meta")
    layer(torch.empty(5, 3, 4, 4, device="meta")).sum().backward()
    assert layer[1][0].feedback.Q.grad.is_meta


def test_every_rule_has_its_costs() -> None:
    found = rule_costs.measure(replace(NETWORKS["mlp"], error_dims={"r = 4": 4}), repetitions=2)
    assert list(found) == [rule_costs.BACKPROP, *rule_costs.RULES]
    assert all(one["milliseconds"] > 0 for one in found.values())
    text = rule_costs.tables({"networks": {"mlp": found}})
    assert all(f"| {name} " in text for name in found)
    per_rule = {name: one["gflop"] for name, one in found.items()}
    assert per_rule["local"] < per_rule["normative"] != per_rule["normative, `fit_every=10`"]
