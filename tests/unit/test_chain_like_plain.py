"""Converted models run what plain ones run, to the bit where feedback has no part: the rule is `backprop`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import InputError, convert, revert


class Residual(nn.Module):
    """Adds to a layer's output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        output: Tensor = self.second(hidden)
        output += hidden
        return output


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 2, 3, 6)])
@pytest.mark.parametrize(
    "plain",
    [
        Residual(),
        nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU(inplace=True)),
    ],
)
def test_what_follows_a_layer_may_change_its_output_in_place(
    plain: nn.Module, shape: tuple[int, ...]
) -> None:
    model = convert(copy.deepcopy(plain), rule="backprop")
    found, expected = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    outputs = []
    for network, x in ((model, found), (plain, expected)):
        network.zero_grad()
        outputs.append(network(x.requires_grad_()))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    torch.testing.assert_close(found.grad, expected.grad)


def test_layers_of_complex_numbers_stay_exact() -> None:
    plain = nn.Sequential(nn.Linear(5, 6, dtype=torch.complex64), nn.Linear(6, 4, dtype=torch.complex64))
    model = convert(nn.ModuleList([copy.deepcopy(plain), nn.Linear(2, 2)]), 1)
    assert [type(layer) for layer in model[0]] == [nn.Linear, nn.Linear]
    assert hasattr(model[1], "feedback")
    with pytest.raises(InputError, match=r"0 \(Linear\).* weights of real numbers"):
        convert(plain, 1)
    later = convert(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), 2).to(torch.complex64)
    with pytest.raises(InputError, match="become complex"):
        later(torch.randn(3, 5, dtype=torch.complex64))


class Feedback(nn.Linear):
    """Has an attribute of the name that a converted layer's own goes by."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.feedback = nn.Linear(2, 2)


class Plain(nn.Linear):
    plain_class = "mine"


class Tagged(nn.Linear):
    """Its subclasses need an argument."""

    def __init_subclass__(cls, *, tag: str, **others: Any) -> None:
        super().__init_subclass__(**others)


def test_attributes_of_a_subclass_are_never_overwritten() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Feedback(4, 4), Plain(4, 4), nn.Linear(4, 4))
    own = model[1].feedback
    convert(model, 2)
    assert [type(layer) for layer in model[1:3]] == [Feedback, Plain]
    assert hasattr(model[3], "feedback")
    revert(model)
    assert model[1].feedback is own and model[2].plain_class == "mine"


def test_subclasses_whose_subclasses_need_arguments_are_converted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Tagged(4, 4))
    convert(model, 2)
    assert isinstance(model[1], Tagged) and hasattr(model[1], "feedback")
    assert type(revert(model)[1]) is Tagged


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 8), (5, 8)])
def test_what_an_attention_returns_lies_in_memory_as_pytorchs(
    shape: tuple[int, ...], need_weights: bool, batch_first: bool
) -> None:
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    model, x = convert(copy.deepcopy(plain), rule="backprop"), torch.randn(shape)
    found, expected = (one(x, x, x, need_weights=need_weights) for one in (model, plain))
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or one.stride() == other.stride()


def test_a_seeded_run_with_dropout_is_that_of_the_plain_model() -> None:
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True), 2)
    model, x = convert(copy.deepcopy(plain), rule="backprop"), torch.randn(2, 5, 8)
    outputs = []
    for one in (model, plain):
        torch.manual_seed(0)
        outputs.append(one(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("rule", ["low-dimensional", "kolen-pollack", "follow"])
def test_a_converted_model_is_one_graph_to_the_compiler(rule: str) -> None:
    model = convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), 2, rule=rule)
    inputs = torch.randn(3, 4, 6, requires_grad=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), model(inputs))
    compiled(inputs).square().sum().backward()
    assert inputs.grad is not None
