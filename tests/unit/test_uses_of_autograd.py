"""Blocks learn what plain torch would, whatever their layers make of autograd; or they are refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from uses_of_autograd import WHOLE_UPDATES, WIDTH, WORKS, Layer, body, linear, network

from lowdimfa.block import Block
from lowdimfa.build import build_stages
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.exactness import refuse_inexact
from lowdimfa.generators import seed_generators
from lowdimfa.head import Head
from lowdimfa.partitioning import partition
from lowdimfa.tickets import Ticket, derive_seed

BATCH, MICROBATCHES = 5, 2
DIRECT = FeedbackConfig(q_rule="fixed", tap="identity")


def training(staleness: int = 0) -> TrainingConfig:
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.5}))
    return TrainingConfig(10, microbatches=MICROBATCHES, staleness=staleness, update=update)


def built(model: nn.Module, cuts: list[str], staleness: int = 0) -> tuple[list[Block], Head]:
    torch.manual_seed(1)  # lazy layers draw their weights when the model is cut
    plans = partition(model, cuts, torch.zeros(2, WIDTH))
    return build_stages(plans, DIRECT, training(staleness), "classification")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BATCHES = [(normal(BATCH, WIDTH, seed=s), torch.arange(BATCH) % 4) for s in range(MICROBATCHES)]


def plain_gradients(block: Block, inputs: list[Tensor], errors: list[Tensor]) -> dict[str, Tensor]:
    """Return what a plain loop makes of the block's layers: each backward pass right after its forward."""
    block.module.train()
    for number, (x, error) in enumerate(zip(inputs, errors, strict=True)):
        seed_generators(derive_seed(block.seed, "forward", block.index, 0, number))
        # A copy of a leaf: as in the middle of a network, where a layer may also write in place to its input.
        output = block.module(x.clone().requires_grad_().clone())
        seed_generators(derive_seed(block.seed, "update", block.index, 0, number))
        delivered = error @ block.sites[0].feedback.weights.t()
        torch.autograd.backward(output, delivered.view_as(output))
    return gradients(block)


def gradients(block: Block) -> dict[str, Tensor]:
    found = {name: value.grad for name, value in block.module.named_parameters()}
    return {name: value.clone() for name, value in found.items() if value is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
        )


def learned_gradients(
    block: Block, inputs: list[Tensor], errors: list[Tensor], staleness: int
) -> dict[str, Tensor]:
    """Return what a block learns: all forward passes, then, if stale with other weights, all errors."""
    for number, x in enumerate(inputs):
        block.forward(x, Ticket(0, number))
    learned = [value for value in block.module.parameters() if value.requires_grad]
    before = [value.detach().clone() for value in learned]
    if staleness:  # the weights change between, and come back for the gradients
        block.before_update()
        with torch.no_grad():
            for value in learned:
                value.add_(1.0)
    for number, error in enumerate(errors):
        block.receive_error(Ticket(0, number), error)
    if staleness:
        for value, old in zip(learned, before, strict=True):
            assert torch.equal(value, old + 1.0)
    return gradients(block)


@given(
    uses=st.lists(st.sampled_from(sorted(WORKS)), min_size=1, max_size=2),
    at_start=st.booleans(),
    staleness=st.sampled_from([0, 1]),
)
@example(uses=["hooks", "in place at both ends"], at_start=False, staleness=0)  # torch itself refuses it
def test_gradients_are_those_of_plain_torch(uses: list[str], at_start: bool, staleness: int) -> None:
    cuts = [*(["1"] if at_start else []), str(len(uses) + 1)]
    (*_, block), _ = built(network(*uses), cuts, staleness)
    (*_, reference), _ = built(network(*uses), cuts)
    inputs = [normal(BATCH, WIDTH, seed=s) for s in range(MICROBATCHES)]
    errors = [normal(BATCH, 4, seed=9 + s) for s in range(MICROBATCHES)]
    try:
        expected = plain_gradients(reference, inputs, errors)
    except RuntimeError as refusal:  # what plain torch refuses is refused here in the same words
        with pytest.raises(RuntimeError, match=re.escape(str(refusal)[:60])):
            learned_gradients(block, inputs, errors, staleness)
        return
    assert_equal(learned_gradients(block, inputs, errors, staleness), expected)
    assert [torch.equal(x, normal(BATCH, WIDTH, seed=s)) for s, x in enumerate(inputs)] == [True, True]


@pytest.mark.parametrize("use", sorted(WORKS | WHOLE_UPDATES))
def test_uses_that_work_are_not_refused(use: str) -> None:
    stale = use in WORKS
    blocks, head = built(network(use, use), ["1", "2"], int(stale))
    before = {
        name: value.clone() for block in blocks for name, value in block.module.plain_state_dict().items()
    }
    refuse_inexact([*blocks, head], BATCHES, overlapping=True, stale=stale)
    after = {name: value for block in blocks for name, value in block.module.plain_state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not [value for block in blocks for value in block.module.parameters() if value.grad is not None]


def reentrant(layer: Layer, x: Tensor) -> Tensor:
    return checkpoint(layer.inner, x, use_reentrant=True)


def counted(layer: Layer, x: Tensor) -> Tensor:
    layer.calls = getattr(layer, "calls", 0) + 1
    return layer.inner(x) * layer.calls


def recomputed_norm(layer: Layer, x: Tensor) -> Tensor:
    return checkpoint(layer.inner, x, use_reentrant=False)


def naive(layer: Layer, x: Tensor) -> Tensor:
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(layer.inner(x).square().sum(), x, create_graph=True)
    return slope


class Late(nn.Module):
    """Changes what an earlier graph refers to, behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.data.mul_(1.5)
        return self.inner(x) * self.scale


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "reentrant checkpoint within a block": (
        lambda: nn.Sequential(linear(), Layer(reentrant, inner=body())),
        "use_reentrant=False",
    ),
    "reentrant checkpoint": (lambda: Layer(reentrant, inner=body()), "use_reentrant=False"),
    "batch norm that is run again": (
        lambda: Layer(recomputed_norm, inner=nn.Sequential(linear(), nn.BatchNorm1d(WIDTH))),
        "train.microbatches to 1",
    ),
    "a state outside of buffers": (lambda: Layer(counted, inner=linear()), "others than plain torch's"),
    "a gradient by an input without one": (lambda: Layer(naive, inner=linear()), "requires_grad_"),
    "a buffer changed behind autograd": (Late, "train.microbatches to 1"),
    "a layer that fails in training": (lambda: Layer(lambda layer, x: x.no_such_thing()), "no_such_thing"),
}


@pytest.mark.parametrize("use", sorted(REFUSED))
def test_what_would_learn_something_else_is_refused(use: str) -> None:
    make, words = REFUSED[use]
    model = nn.Sequential(linear(), make(), nn.Linear(WIDTH, 4))
    with pytest.raises(InputError) as caught:
        blocks, head = built(model, ["1", "2"])
        refuse_inexact([*blocks, head], BATCHES, overlapping=True, stale=False)
    assert words in str(caught.value)
    assert "'1'" in str(caught.value)


@pytest.mark.parametrize("use", WHOLE_UPDATES)
def test_what_no_stale_weights_can_be_kept_for_is_refused_with_staleness(use: str) -> None:
    blocks, head = built(network(use), ["1", "2"], staleness=1)
    with pytest.raises(InputError, match=r"train\.staleness to 0"):
        refuse_inexact([*blocks, head], BATCHES, overlapping=True, stale=True)
