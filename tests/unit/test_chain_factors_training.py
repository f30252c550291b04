"""Training with the second generation of the chain form: refreshes, resumed runs, groups, and what derives from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa import ChainConfig, FactoryConfig, convert, feedback_parameters, parameter_groups
from lowdimfa.chain.factors import Local
from lowdimfa.chain.function import Incoming
from lowdimfa.models import cnn, mlp, vit


def train(model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=draw)
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(x), x[:, :4].argmax(-1)))
        optimizer.step()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, lr=1e-2, feedback_lr=2e-2))


def converted(rule: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return convert(mlp(6, 12, 3, 4), 3, rule=rule, **settings)


@pytest.mark.parametrize("rule", ["local", "normative"])
def test_a_refresh_starts_again_from_the_weights_as_they_are_and_at_its_step_alone(rule: str) -> None:
    model: Any = converted(rule, refresh_every=4)
    optimizer, apart = optimizer_of(model), []
    for step in range(9):
        train(model, 1, optimizer, step)
        weight, feedback = model[1][0].weight.detach().clone(), model[1][0].feedback
        model(torch.zeros(1, 6))  # a refresh that is due comes with the next forward pass
        left, values, right = torch.linalg.svd(weight)
        best = left[:, :3] * values[:3] @ right[:3]
        apart.append(torch.dist((feedback.Q @ feedback.P).detach().t(), best).item())
    assert [distance < 1e-5 for distance in apart] == [step in (3, 7) for step in range(9)]


@pytest.mark.parametrize("rule", ["local", "normative", "follow"])
def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped(rule: str) -> None:
    settings: dict[str, Any] = {} if rule == "follow" else {"refresh_every": 5}
    whole, first = converted(rule, **settings), converted(rule, **settings)
    optimizers = [optimizer_of(whole), optimizer_of(first)]
    for seed in range(8):
        train(whole, 1, optimizers[0], seed)
    for seed in range(3):
        train(first, 1, optimizers[1], seed)
    second = converted(rule, seed=9, **settings)
    second.load_state_dict(first.state_dict())
    optimizer = optimizer_of(second)
    optimizer.load_state_dict(optimizers[1].state_dict())
    twin = copy.deepcopy(second)
    for seed in range(3, 8):
        train(second, 1, optimizer, seed)
    assert not torch.equal(twin[1][0].weight, second[1][0].weight)  # type: ignore[index]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("epochs", "batches", "passes"), [(0.5, 8, 4), (0.5, 9, 4), (2.0, 3, 6), (0.01, 8, 1)]
)
def test_refreshes_may_be_told_in_epochs(epochs: float, batches: int, passes: int) -> None:
    settings: dict[str, Any] = {"rule": "normative", "clamp": [10.0, 0.1]}
    assert (
        ChainConfig(3, refresh_every=epochs, batches_per_epoch=batches, **settings).refresh_passes == passes
    )
    models = [
        converted("normative", refresh_every=epochs, batches_per_epoch=batches),
        converted("normative", refresh_every=passes),
    ]
    for model in models:
        train(model, 7, optimizer_of(model))
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


@pytest.mark.parametrize("rule", ["local", "normative"])
def test_layers_that_start_at_zero_learn_their_feedback(rule: str) -> None:
    model: Any = mlp(6, 12, 3, 4)
    nn.init.zeros_(model[2][0].weight)
    convert(model, 3, rule=rule)
    assert not (model[2][0].feedback.Q @ model[2][0].feedback.P).any()
    train(model, 20, optimizer_of(model))
    assert (model[2][0].feedback.Q @ model[2][0].feedback.P).norm() > 0.05


def test_learned_feedback_has_a_group_without_decay_and_all_parameters_have_one() -> None:
    model = converted("local")
    weights, feedback = parameter_groups(model, lr=1e-3, feedback_lr=1e-2)
    assert feedback["lr"] == 1e-2 and feedback["weight_decay"] == 0 and "weight_decay" not in weights
    found = [id(parameter) for group in (weights, feedback) for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert [id(one) for one in feedback["params"]] == [id(one) for one in feedback_parameters(model)]
    assert len(parameter_groups(converted("follow"), lr=1e-3, feedback_lr=1e-2)) == 1


def test_two_bounds_may_be_a_list() -> None:
    for clamp in ([0.01, 1.0], (0.01, 1.0)):
        model: Any = converted("local", clamp=clamp)
        (1e3 * model(torch.ones(2, 6)).sum()).backward()
        assert model[1][0].feedback.Q.grad.abs().max() == pytest.approx(0.01)


def test_joint_projections_have_three_times_the_error_dimension() -> None:
    model = convert(vit(8, 4, 1, 16, 1, 2, 4), 4, joint=["qkv"], rule="local")
    found = {name: p.shape[-2] for name, p in model.named_parameters() if name.endswith(".P")}
    assert {size for name, size in found.items() if "qkv" in name} == {12}
    assert {size for name, size in found.items() if "qkv" not in name} == {4}


@pytest.mark.parametrize("rule", ["local", "normative", "follow"])
def test_autocast_learns_in_float32(rule: str) -> None:
    torch.manual_seed(0)
    model = convert(cnn(1, (4, 6), 4, 8), 2, rule=rule)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(5, 1, 8, 8))
        torch.autograd.backward(output.float().square().sum())
    found = list(feedback_parameters(model))
    assert rule == "follow" or found
    assert all(one.grad is None or one.grad.dtype == torch.float32 for one in found)


def test_a_rule_of_ones_own_may_derive_from_a_factored_one() -> None:
    rule = FactoryConfig(f"{__name__}:Halved", {"share": 0.5})
    layer: Any = convert(nn.Linear(6, 8), 2, rule=rule)
    plain: Any = convert(nn.Linear(6, 8), 2, rule="local")
    plain.load_state_dict(layer.state_dict())
    inputs = [torch.ones(3, 6, requires_grad=True) for _ in range(2)]
    for one, x in zip((layer, plain), inputs, strict=True):
        one(x).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad / 2)  # type: ignore[operator]


class Halved(Local):
    """Delivers a share of the error."""

    def __init__(self, *arguments: Any, share: float) -> None:
        super().__init__(*arguments)
        self.share = share

    def deliver(self, incoming: Incoming) -> tuple[Tensor, Tensor | None]:
        delivered, gradient = super().deliver(incoming)
        return self.share * delivered, gradient
