from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowdimfa.balance import Cut, balance, bottleneck, recut
from lowdimfa.cost import seconds


def test_balance_is_one_where_all_cost_the_same_and_falls_with_the_bottleneck() -> None:
    assert balance([2.0, 2.0, 2.0]) == 1
    assert balance([1.0, 3.0]) == pytest.approx(2 / 3)
    assert balance([0.0, 4.0, 0.0, 0.0]) == 1 / 4
    assert balance([0.0, 0.0]) == 1
    assert bottleneck([1.0, 3.0, 2.0]) == 1


def test_a_saving_is_a_share_of_the_bottleneck() -> None:
    assert Cut(("b",), (4.0, 2.0)).saving(Cut(("a",), (3.0, 3.0))) == pytest.approx(0.25)
    assert Cut((), (0.0,)).saving(Cut((), (0.0,))) == 0


def test_what_a_block_really_took_moves_the_boundary() -> None:
    layers = [{"a": 1.0, "b": 1.0}, {"c": 1.0, "d": 1.0}]
    starts = {"b", "c", "d"}
    assert recut(layers, [2.0, 2.0], starts).boundaries == ("c",)
    # The first block takes three times what was estimated, so that each of its layers counts three times.
    assert recut(layers, [6.0, 2.0], starts) == Cut(("b",), (3.0, 5.0))


def test_blocks_begin_only_where_they_may() -> None:
    layers = [{"a": 1.0, "b": 1.0, "c": 1.0}, {"d": 1.0}]
    assert recut(layers, [3.0, 1.0], {"b", "d"}).boundaries in (("b",), ("d",))
    assert recut(layers, [3.0, 1.0], {"c", "d"}).boundaries == ("c",)


def test_layers_without_any_estimate_share_their_block_evenly() -> None:
    assert recut([{"a": 0.0, "b": 0.0}, {"c": 1.0}], [4.0, 1.0], {"b", "c"}) == Cut(("b",), (2.0, 3.0))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_no_other_cut_is_expected_to_be_more_even(blocks: list[list[int]], data: st.DataObject) -> None:
    measured = [float(data.draw(st.integers(1, 30))) for _ in blocks]
    layers = [{f"{k}.{i}": float(cost) for i, cost in enumerate(block)} for k, block in enumerate(blocks)]
    names = [name for block in layers for name in block]
    costs = [
        seconds * cost / sum(block.values())
        for seconds, block in zip(measured, layers, strict=True)
        for cost in block.values()
    ]
    found = recut(layers, measured, set(names))
    assert sum(found.costs) == pytest.approx(sum(measured))
    least = min(
        max(sum(costs[start:stop]) for start, stop in pairwise([0, *cuts, len(names)]))
        for cuts in combinations(range(1, len(names)), len(blocks) - 1)
    )
    assert found.highest == pytest.approx(least)


def test_a_layer_is_timed_as_it_is_trained() -> None:
    passes: list[tuple[bool, bool]] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            passes.append((self.training, x.requires_grad))
            return super().forward(x)

    module = Watched(4, 4).eval()
    assert seconds(module, torch.rand(3, 4)) > 0
    assert set(passes) == {(True, True)}
    assert not module.training
    assert module.weight.grad is None
