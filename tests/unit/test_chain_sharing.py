"""Layers that share a weight share its feedback, and no others do; layers that go by several names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import InputError, convert


class Computed(nn.Linear):
    """Its weight is computed whenever it is read."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.raw = self._parameters.pop("weight")
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Return the weight."""
        return self.raw * self.scale


class Flat(nn.Module):
    """Layers whose weights are parts of one parameter; the last has the part of the first."""

    PARTS = (0, 1, 2, 0)

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.randn(3 * 64) * 0.3)
        self.layers = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in self.PARTS))
        for layer in self.layers:
            del layer.weight
        self._spread()

    def _spread(self) -> None:
        for part, layer in zip(self.PARTS, self.layers, strict=True):
            layer.weight = self.flat[64 * part : 64 * (part + 1)].view(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self._spread()
        output: Tensor = self.layers(x)
        return output


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = first, second, nn.Linear(8, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.c(self.b(self.a(x).relu()).relu())
        return output


class Held(nn.Module):
    """Two blocks that hold one layer."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(8, 8)
        self.body, self.head = (
            nn.Sequential(nn.Linear(8, 8), shared),
            nn.Sequential(shared, nn.Linear(8, 4)),
        )


def rules_of(layers: nn.Module) -> list[Any]:
    return [layer.feedback for layer in layers.children()]


@pytest.mark.parametrize("rule", ["low-dimensional", "local", "follow"])
def test_computed_weights_have_feedback_of_their_own(rule: str) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(*(Computed(8, 8) for _ in range(8))), 3, rule=rule)
    feedback = rules_of(model)
    assert len(set(feedback)) == 8
    if rule != "low-dimensional":
        for layer, own in zip(model, feedback, strict=True):
            seen = own.P @ layer.weight
            torch.testing.assert_close(own.Q @ own.P @ own.P.t() if rule == "local" else own.Q, seen.t())


def test_parts_of_one_parameter_share_feedback_where_they_are_the_same_part() -> None:
    torch.manual_seed(0)
    model = convert(Flat(), 3, rule="follow")
    first, second, third, fourth = rules_of(model.layers)
    assert len({first, second, third}) == 3 and first is fourth
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    model(torch.randn(4, 8))
    for layer in list(model.layers)[1:]:  # the first one's input wants no error
        torch.testing.assert_close(layer.feedback.Q, (layer.feedback.P @ layer.weight).t().detach())


def test_tied_layers_share_feedback_and_settings() -> None:
    linear = convert(Tied(nn.Linear(8, 8), nn.Linear(8, 8)), 2, error_dims={"a": 6, "b": 6})
    assert linear.a.feedback is linear.b.feedback
    assert linear.b.feedback.P.shape == (6, 8)
    attentions = nn.ModuleList(nn.MultiheadAttention(8, 2) for _ in range(2))
    attentions[1].in_proj_weight = attentions[0].in_proj_weight
    first, second = rules_of(convert(attentions, 2))
    assert first["key"] is second["key"] is not first["query"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"error_dims": {"b": 6}},
            "error_dims: found the layers 'a' and 'b', which share a weight, .* 2 and 6",
        ),
        ({"p_targets": ["b"]}, "p_targets: found the layers 'a' and 'b'"),
    ],
)
def test_tied_layers_that_ask_for_different_things_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    model = Tied(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(InputError, match=message):
        convert(model, 2, **settings)
    assert not any(hasattr(module, "feedback") for module in model.modules())


def test_tied_convolutions_of_different_groups_have_no_feedback_in_common() -> None:
    def tied() -> nn.Module:
        return Tied(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2))

    with pytest.raises(InputError, match=r"groups of 1 and 2.*skip=\['a', 'b'\]"):
        convert(tied(), 64)
    model = convert(tied(), rule="kolen-pollack")  # its Q is a kernel for both
    model.b(model.a(torch.randn(1, 4, 6, 6, requires_grad=True))).sum().backward()


def test_a_layer_that_two_blocks_hold_goes_by_all_of_its_names() -> None:
    for skip in (["head"], ["head.0"], ["body.1"]):
        model = convert(Held(), 2, skip=skip)
        assert type(model.head[0]) is nn.Linear
        assert hasattr(model.body[0], "feedback")
    message = re.escape(
        "error_dims: found the name 'head.0', under which the model holds its layer 'body.1' once more"
    )
    with pytest.raises(InputError, match=message):
        convert(Held(), 2, error_dims={"head.0": 3})
