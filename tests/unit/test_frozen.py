"""Frozen parameters keep their bits, the rest learns as in plain torch; a run without anything to learn is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdimfa.alignment import measure_alignment
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.services.run.weights import freeze
from lowdimfa.tickets import Ticket

STEPS, BATCH, CLASSES = 6, 16, 5
BLOCKS = ["3", "6", "9"]
BODY = ["0.*", "1.*", "3.*", "4.*", "6.*", "7.*"]


def network_of(*patterns: str) -> nn.Sequential:
    """Return three blocks with batch norm, and a head, with some of it frozen."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for width in (6, 12, 12):
        layers += [nn.Linear(width, 12), nn.BatchNorm1d(12), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(12, CLASSES))
    freeze(model, patterns)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, 6, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator))
        for _ in range(STEPS)
    ]


UPDATE = UpdateConfig(FactoryConfig("torch.optim.AdamW", {"lr": 0.01, "weight_decay": 0.1}), grad_clip=None)


def cut(model: nn.Module, **feedback: Any) -> DecoupledNetwork:
    training = TrainingConfig(total_steps=STEPS, update=UPDATE)
    return decouple(
        model,
        batches()[0][0][:2],
        blocks=BLOCKS,
        total_steps=STEPS,
        feedback=FeedbackConfig(**feedback),
        training=training,
    )


def trained(network: DecoupledNetwork) -> dict[str, Tensor]:
    for step, batch in enumerate(batches()):
        network.train_step(step, [batch])
    return network.state_dict()


def plainly_trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model that plain torch has trained."""
    optimizer = torch.optim.AdamW(
        [value for value in model.parameters() if value.requires_grad],
        fused=True,
        **dict(UPDATE.optimizer.args),
    )
    model.train()
    for inputs, targets in batches():
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(inputs), targets))
        optimizer.step()
    return model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.parametrize("patterns", [["0.*"], ["3.*", "4.*"], ["1.weight", "6.*", "9.bias"], BODY])
def test_exact_gradients_are_those_of_plain_torch(patterns: list[str]) -> None:
    network = cut(network_of(*patterns), form="backprop")
    assert_same(trained(network), plainly_trained(network_of(*patterns)))


@pytest.mark.parametrize("q_rule", ["hebbian", "probed", "readout", "fixed"])
def test_a_head_on_a_frozen_body_is_plain_torch_whatever_the_rule(q_rule: str) -> None:
    network = cut(network_of(*BODY), q_rule=q_rule, probe_every=2)
    assert_same(trained(network), plainly_trained(network_of(*BODY)))
    assert not any(block.sites or block._kept for block in network.blocks)


@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize("q_rule", ["hebbian", "probed", "readout"])
@pytest.mark.parametrize("patterns", [["0.*", "1.*"], ["3.*", "4.*"], ["1.weight", "6.*"], ["9.*"]])
def test_the_rest_learns_and_what_is_frozen_keeps_its_bits(
    patterns: list[str], q_rule: str, every_layer: bool
) -> None:
    model = network_of(*patterns)
    before = deepcopy(model.state_dict())
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    network = cut(model, q_rule=q_rule, probe_every=2, every_layer=every_layer)
    after = trained(network)
    for name, _ in model.named_parameters():
        assert torch.equal(after[name], before[name]) == (name not in learning), name
    assert int(after["4.num_batches_tracked"]) == STEPS
    for stage in network.stages:
        own = {name for name, _ in stage.module.named_plain_parameters()}
        updated = {name for name in stage.updater.parameters if not name.endswith(".Q")}
        assert updated == own & learning
        assert bool(stage.sites) == bool(own & learning) or stage is network.head
        assert not [name for name in stage.state().tensors if "feedback" in name and not stage.sites]


def test_a_partly_frozen_block_learns_what_it_would_learn_whole() -> None:
    whole, part = cut(network_of(), q_rule="fixed"), cut(network_of("0.weight"), q_rule="fixed")
    for network in (whole, part):
        network.form.run(*batches()[0], Ticket(0, 0))
    gradients = [dict(network.blocks[0].module.named_plain_parameters()) for network in (whole, part)]
    assert gradients[1]["0.weight"].grad is None
    for name in ("0.bias", "1.weight", "1.bias"):
        assert gradients[0][name].grad is not None
        assert torch.equal(gradients[0][name].grad, gradients[1][name].grad)  # type: ignore[arg-type]


def test_greedy_local_losses_pass_frozen_blocks_by() -> None:
    model = network_of("3.*", "4.*")
    before = deepcopy(model.state_dict())
    after = trained(cut(model, form="local"))
    changed = {name for name, _ in model.named_parameters() if not torch.equal(after[name], before[name])}
    assert changed == {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("form", "patterns"), [("broadcast", ["*"]), ("backprop", ["*"]), ("local", ["*"]), ("frozen", ["9.*"])]
)
def test_a_network_with_nothing_to_learn_is_refused(form: str, patterns: list[str]) -> None:
    with pytest.raises(InputError, match="no parameter requires a gradient"):
        cut(network_of(*patterns), form=form)


def test_only_blocks_that_learn_have_an_alignment() -> None:
    network = cut(network_of("3.*", "4.*"))
    found = measure_alignment(network.blocks, network.head, *batches()[0]).blocks
    assert [entry.block for entry in found] == [0, 2]


@pytest.mark.parametrize("make", [lambda: network_of(), lambda: nn.Sequential(nn.LazyLinear(3), nn.ReLU())])
def test_a_pattern_that_fits_nothing_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        InputError, match=r"model\.frozen: found the pattern 'body\.\*'.* such as '0\.weight'"
    ):
        freeze(make(), ["0.*", "body.*"])


def test_lazy_and_tied_layers_freeze_by_any_of_their_names() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    freeze(lazy, ["0.weight"])
    lazy(torch.zeros(2, 5))
    assert [value.requires_grad for value in lazy.parameters()] == [False, True, True, True]
    shared = nn.Linear(3, 3)
    freeze(nn.Sequential(shared, nn.ReLU(), shared), ["2.weight"])
    assert not shared.weight.requires_grad and shared.bias.requires_grad


class Thawing(nn.Module):
    """Unfreezes its layer in its third training step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12).requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.linear.requires_grad_(int(self.calls) > 2)
        return self.linear(x)


@pytest.mark.parametrize("form", ["broadcast", "backprop", "local"])
def test_a_parameter_that_a_layer_unfreezes_on_the_way_is_no_silent_loss(form: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), Thawing(), nn.Tanh(), nn.Linear(12, CLASSES))
    feedback = FeedbackConfig(form=form)
    network = decouple(model, batches()[0][0][:2], blocks=2, total_steps=STEPS, feedback=feedback)
    for step in (0, 1):
        network.train_step(step, [batches()[step]])
    with pytest.raises(InputError, match=r"parameter '2\.linear\.weight' require a gradient while it trains"):
        network.train_step(2, [batches()[2]])


class Merging(nn.Linear):
    """A linear layer with an adapter, which is merged into the frozen weight for evaluation, as some libraries do."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight.requires_grad_(False)
        self.merged = False
        self.down = nn.Parameter(torch.randn(2, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, 2))

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            sign = -1.0 if self.merged else 1.0
            self.weight.data += sign * self.up.detach() @ self.down.detach()
            self.merged = not self.merged
        return self

    def forward(self, x: Tensor) -> Tensor:
        found = functional.linear(x, self.weight, self.bias)
        return found if self.merged else found + x @ self.down.t() @ self.up.t()


def test_planning_leaves_a_large_frozen_weight_that_is_merged_for_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lowdimfa.unchanged.MOST_COPIED", 0)
    model = nn.Sequential(Merging(6, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    nn.init.normal_(model[0].up)
    before = model[0].weight.detach().clone()
    decouple(model, batches()[0][0][:2], blocks=2, total_steps=STEPS)
    assert not model[0].merged
    torch.testing.assert_close(model[0].weight, before)


@pytest.mark.parametrize("average", [None, 0.5])
def test_layers_that_merge_weights_for_evaluation_are_apart_again_after_it(average: float | None) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(Merging(6, 12), nn.Tanh(), Merging(12, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    frozen = model[0].weight.detach().clone()
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.5}), grad_clip=None)
    training = TrainingConfig(total_steps=STEPS, update=update, average=average)
    network = decouple(model, batches()[0][0][:2], blocks=2, total_steps=STEPS, training=training)
    averages = [one.detach().clone() for one in model.parameters()]
    for step, batch in enumerate(batches()):
        network.train_step(step, [batch])
        found = network.evaluate([batch]).loss
        if average is not None:
            for own, value in zip(averages, model.parameters(), strict=True):
                own.lerp_(value.detach(), 1 - average if step else 1.0)
        plain = deepcopy(model).train()
        if average is not None:
            for own, value in zip(plain.parameters(), averages, strict=True):
                own.data.copy_(value)
        expected = functional.cross_entropy(plain.eval()(batch[0]), batch[1])
        assert found == pytest.approx(float(expected), rel=1e-4)
        assert not model[0].merged
        torch.testing.assert_close(model[0].weight, frozen)
