"""Muon with groups of parameters and names, and its copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import convert, parameter_groups
from lowdimfa.kinds import kinds_of
from lowdimfa.muon import Muon
from lowdimfa.muon_groups import Params


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> dict[str, Tensor]:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def run(params: Callable[[nn.Module], Params], steps: int = 3, **settings: Any) -> dict[str, Tensor]:
    model = network()
    return trained(model, Muon(params(model), lr=0.02, kinds=kinds_of(model), **settings), steps)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_names_groups_and_any_order_take_the_steps_of_the_plain_list() -> None:
    plain = run(lambda model: model.parameters())
    assert_equal(run(lambda model: model.named_parameters()), plain)
    assert_equal(run(lambda model: reversed(list(model.parameters()))), plain)
    assert_equal(run(lambda model: [{"params": model.parameters()}]), plain)
    assert_equal(run(lambda model: [{"params": one} for one in model.parameters()]), plain)
    assert_equal(run(lambda model: [{"params": list(model.named_parameters()), "lr": 0.02}]), plain)


def test_kinds_go_by_the_names_of_parameters_wherever_these_stand() -> None:
    model = network()
    kinds = dict(kinds_of(model))
    optimizer = Muon(reversed(list(model.named_parameters())), kinds=kinds)
    assert [tuple(one.shape) for one in optimizer.param_groups[0]["params"]] == [(12, 16), (16, 8)]
    assert optimizer.param_groups[0]["param_names"] == ["2.weight", "0.weight"]
    biases = [pair for pair in model.named_parameters() if pair[0].endswith("bias")]
    parts = [group["param_names"] for group in Muon([{"params": biases}], kinds=kinds).param_groups]
    assert parts == [[], ["0.bias", "2.bias", "4.bias"]]


def test_frozen_parameters_may_be_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    wanted = [one for one in model.parameters() if one.requires_grad]
    optimizer = Muon(wanted, kinds=kinds_of(model))
    assert [group["params"] for group in optimizer.param_groups] == [
        [model[2].weight],
        [model[2].bias, model[4].weight, model[4].bias],
    ]


def test_feedback_has_its_own_rate_and_decay_as_under_adamw() -> None:
    torch.manual_seed(0)
    model = convert(network(), 4, rule="normative")
    twin = copy.deepcopy(model)
    groups = parameter_groups(model, lr=0.02, feedback_lr=0.1)
    optimizer = Muon(groups, weight_decay=0.1, kinds=kinds_of(model))
    settings = [
        (group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups
    ]
    assert settings == [(0.02, 0.1, 2), (0.02, 0.1, 4), (0.1, 0.0, 0), (0.1, 0.0, 6)]
    other = torch.optim.AdamW(parameter_groups(twin, lr=0.02, feedback_lr=0.1), weight_decay=0.1)
    found, expected = trained(model, optimizer, 1), trained(twin, other, 1)
    for name in ("2.feedback.Q", "2.feedback.P", "4.weight", "0.bias"):
        assert torch.equal(found[name], expected[name]), name
    assert not torch.equal(found["2.weight"], expected["2.weight"])


def test_a_schedule_moves_all_rates() -> None:
    model = convert(network(), 4, rule="normative")
    optimizer = Muon(parameter_groups(model, lr=0.02, feedback_lr=0.1), kinds=kinds_of(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trained(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.05, 0.05]


def test_the_groups_of_a_plain_list_are_what_they_were() -> None:
    """Checkpoints have them."""
    model = network()
    for group in Muon(model.parameters(), kinds=kinds_of(model)).param_groups:
        assert set(group) == {
            "params",
            "lr",
            "weight_decay",
            "momentum",
            "nesterov",
            "ns_steps",
            "adjust_lr_fn",
            "adamw_scale",
            "betas",
            "eps",
            "fused",
        }


def test_a_state_goes_to_another_muon_with_the_same_groups() -> None:
    def made(model: nn.Module) -> Muon:
        torch.manual_seed(1)
        convert(model, 4, rule="normative")
        return Muon(parameter_groups(model, lr=0.02, feedback_lr=0.1), kinds=kinds_of(model))

    model, other = network(), network()
    optimizer = made(model)
    trained(model, optimizer)
    second = made(other)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal(trained(other, second), trained(model, optimizer))


def saved(pair: tuple[nn.Module, Muon]) -> tuple[nn.Module, Muon]:
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    found: tuple[nn.Module, Muon] = torch.load(buffer, weights_only=False)
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), saved])
def test_copies_go_on_as_the_original(copied: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = Muon(model.parameters(), lr=0.02, kinds=kinds_of(model), adamw=["9.*"])
    trained(model, optimizer)
    other_model, other = copied((model, optimizer))
    assert other.unused == ("9.*",)
    assert_equal(trained(other_model, other), trained(model, optimizer))


def test_kinds_are_copied_as_plain_names() -> None:
    kinds = kinds_of(network())
    for other in (copy.deepcopy(kinds), pickle.loads(pickle.dumps(kinds))):
        assert type(other) is dict and other == kinds


def refusal(params: Callable[[nn.Module], Any], kinds: Callable[[nn.Module], Any]) -> str:
    model = network()
    with pytest.raises(ValueError) as refused:
        Muon(params(model), kinds=kinds(model))
    return str(refused.value)


def test_what_does_not_go_together_is_named() -> None:
    everything, plain = (lambda model: model.parameters()), (lambda model: dict(kinds_of(model)))
    assert "groups don't tell" in refusal(lambda model: [{"params": model.parameters()}], plain)
    assert "name 6 parameters, and 2 are given" in refusal(lambda model: model[0].parameters(), plain)
    assert "'0.weight' is a matrix, and a parameter of shape (4,)" in refusal(
        lambda model: reversed(list(model.parameters())), plain
    )
    assert "nothing of the parameter '0.weight'" in refusal(
        lambda model: model.named_parameters(), lambda model: kinds_of(model[0])
    )
    assert "a parameter of shape (3,) isn't of the model" in refusal(
        lambda model: [*model.parameters(), nn.Parameter(torch.ones(3))], kinds_of
    )
    assert "give names to all" in refusal(
        lambda model: [("0.weight", model[0].weight), model[0].bias], kinds_of
    )
    assert "momentum is 2" in refusal(lambda model: [{"params": model.parameters(), "momentum": 2}], kinds_of)
    assert "learning rate" in refusal(lambda model: [{"params": model.parameters(), "lr": -1.0}], kinds_of)
    assert "lr is '1e-3'" in refusal(lambda model: [{"params": everything(model), "lr": "1e-3"}], kinds_of)


def test_parameters_that_come_later_are_refused() -> None:
    model = network()
    optimizer = Muon(model.parameters(), kinds=kinds_of(model))
    for one in (optimizer, copy.deepcopy(optimizer)):
        with pytest.raises(ValueError, match="when it is made"):
            one.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
