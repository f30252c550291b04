"""Converted models run what plain ones run, to the bit where feedback has no part: the rule is `backprop`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import convert


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
