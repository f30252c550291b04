"""The sum of a step's gradients among replicas of a block, without network: its order, its bits, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.block import Block
from lowdimfa.block_module import BlockModule
from lowdimfa.config import FactoryConfig, UpdateConfig
from lowdimfa.encoding import same_bits
from lowdimfa.errors import ProtocolError
from lowdimfa.feedback.rules import HebbianFeedback, ProbedFeedback, QRule
from lowdimfa.layers import Layer
from lowdimfa.optim import Updater
from lowdimfa.services.block.summation import Layout, Summation
from lowdimfa.sites import FeedbackSite
from lowdimfa.stage_config import StageConfig
from lowdimfa.taps import FlatTap


class Odd(nn.Module):
    """Layers with parameters and buffers of several element types."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.linear = nn.Linear(5, 3)
        self.wide = nn.Parameter(torch.ones(7, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.1]))
        self.register_buffer("seen", torch.tensor([1, 2], dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def block(feedback: type[QRule] = HebbianFeedback) -> Block:
    torch.manual_seed(0)
    module = BlockModule([Layer("0", Odd())])
    weights = feedback(3, 2, torch.Generator().manual_seed(0))
    trained = dict(module.named_plain_parameters())
    if weights.trained_by_optimizer:
        trained["0.Q"] = weights.weights
    config = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.1}), None, None)
    sites = [FeedbackSite("0", FlatTap(), weights)]
    return Block(0, module, Updater(trained, [], config, 10), sites, StageConfig(seed=0))


def replicas(number: int, feedback: type[QRule] = HebbianFeedback) -> list[Block]:
    """Return alike blocks with gradients and statistics of their own."""
    made = [block(feedback) for _ in range(number)]
    for rank, one in enumerate(made):
        generator = torch.Generator().manual_seed(rank)
        for parameter in one.updater.trained:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        norm = one.module._layers[0].norm
        norm.running_mean.normal_(generator=generator)
        norm.num_batches_tracked += 3
    return made


def add_up(blocks: Sequence[Block], ends: Sequence[int]) -> list[Summation]:
    """Let every replica have the sum, as messages would bring it."""
    layouts = [Layout(one, len(blocks)) for one in blocks]
    sums = [
        Summation(layout, rank, end) for rank, (layout, end) in enumerate(zip(layouts, ends, strict=True))
    ]
    for rank, mine in enumerate(sums):
        for other in mine.parts_missing:
            message = sums[other].part(rank)
            assert message.nbytes <= layouts[rank].largest_message
            mine.take_part(other, message.clone())
    totals = [mine.add_up() for mine in sums]
    for mine in sums:
        for owner in mine.sums_missing:
            mine.take_sum(owner, totals[owner].clone())
        mine.finish()
    return sums


@given(number=st.integers(2, 9))
def test_all_replicas_get_the_sum_in_the_order_of_ranks_to_the_bit(number: int) -> None:
    blocks = replicas(number)
    gradients = [[parameter.grad.clone() for parameter in one.updater.trained] for one in blocks]
    means = [one.module._layers[0].norm.running_mean.clone() for one in blocks]
    sums = add_up(blocks, [7 + rank for rank in range(number)])
    assert {mine.end for mine in sums} == {7}  # what rank 0 knows
    for index in range(len(gradients[0])):
        expected = gradients[0][index].clone()
        for rank in range(1, number):
            expected += gradients[rank][index]
        for one in blocks:
            found = one.updater.trained[index].grad
            assert found is not None and torch.equal(found, expected)
    for one in blocks:
        odd = one.module._layers[0]
        torch.testing.assert_close(odd.norm.running_mean, torch.stack(means).mean(0))
        assert torch.equal(odd.norm.running_mean, blocks[0].module._layers[0].norm.running_mean)
        assert odd.norm.num_batches_tracked == 3
        assert torch.equal(odd.mask, torch.tensor([0.0, -torch.inf, 0.1]))  # a constant stays one
        assert torch.equal(odd.seen, torch.tensor([1, 2], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        (torch.float16, [(40000.0, 39968.0, 39984.0), (1.0, 3.0, 2.0)]),  # whose sum float16 can't hold
        (torch.bfloat16, [(1.0, 3.0, 2.0), (-torch.inf, -torch.inf, -torch.inf)]),
        (torch.float8_e4m3fn, [(1.0, 3.0, 2.0), (448.0, 448.0, 448.0)]),  # which can't be added at all
        (torch.complex64, [(1j, 3 + 1j, 1.5 + 1j)]),
        (torch.int64, [(3, 3, 3)]),
        (torch.uint16, [(3, 3, 3)]),
    ],
)
def test_statistics_of_other_types_are_averaged_and_what_is_alike_stays(
    kind: torch.dtype, pairs: list[tuple[Any, Any, Any]]
) -> None:
    blocks = [block(), block()]
    for one, values in zip(blocks, zip(*pairs, strict=True), strict=False):
        one.module._layers[0].register_buffer("seen", torch.tensor(values).to(kind))
    add_up(blocks, [1, 1])
    expected = torch.tensor([mean for *_, mean in pairs]).to(kind)
    for one in blocks:
        assert same_bits(one.module._layers[0].seen, expected)


def test_statistics_whose_elements_share_memory_are_averaged_too() -> None:
    blocks = [block(), block()]
    for rank, one in enumerate(blocks):
        one.module._layers[0].register_buffer(
            "scale", torch.tensor([float(rank)]).expand(3), persistent=False
        )
    add_up(blocks, [1, 1])
    for one in blocks:
        assert torch.equal(one.module._layers[0].scale, torch.full((3,), 0.5))


def test_a_gradient_that_one_replica_lacks_counts_as_zero_and_one_that_all_lack_stays_away() -> None:
    first, second = replicas(2)
    lacking, missing = 2, 4
    expected = second.updater.trained[lacking].grad.clone()
    first.updater.trained[lacking].grad = None
    first.updater.trained[missing].grad = second.updater.trained[missing].grad = None
    add_up([first, second], [1, 1])
    for one in (first, second):
        assert torch.equal(one.updater.trained[lacking].grad, expected)
        assert one.updater.trained[missing].grad is None


def test_the_estimate_of_a_probe_reaches_the_replicas_that_had_none() -> None:
    blocks = replicas(3, ProbedFeedback)
    generator = torch.Generator().manual_seed(9)
    moved, response = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)
    blocks[0].sites[-1].feedback.accumulate_probe(moved, response)
    found = blocks[0].sites[-1].feedback.pending()
    assert found is not None
    add_up(blocks, [1, 1, 1])
    for one in blocks:
        estimate = one.sites[-1].feedback.pending()
        assert estimate is not None and torch.equal(estimate, found)
        one.sites[-1].feedback.step()
        assert torch.equal(one.sites[-1].feedback.weights, blocks[0].sites[-1].feedback.weights)
    add_up(blocks, [2, 2, 2])
    assert [one.sites[-1].feedback.pending() for one in blocks] == [None] * 3  # a step without a probe


@pytest.mark.parametrize(
    "message",
    [
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(10_000, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros(50, dtype=torch.float32),
    ],
)
def test_a_message_of_another_size_is_refused(message: Tensor) -> None:
    mine = Summation(Layout(replicas(2)[0], 2), 0, 1)
    with pytest.raises(ProtocolError, match="bytes"):
        mine.take_part(1, message)
    with pytest.raises(ProtocolError, match="bytes"):
        mine.take_sum(1, message)


def test_a_flag_that_is_none_is_refused() -> None:
    first, second = replicas(2)
    message = Summation(Layout(second, 2), 1, 1).part(0)
    message[-1] = 2
    with pytest.raises(ProtocolError, match="neither 0 nor 1"):
        Summation(Layout(first, 2), 0, 1).take_part(1, message)
