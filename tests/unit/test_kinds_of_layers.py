"""What goes between blocks, and models whose parts torch treats apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lowdimfa import FeedbackConfig, decouple
from lowdimfa.config import TrainingConfig
from lowdimfa.cost import _Operations
from lowdimfa.errors import InputError
from lowdimfa.generators import reproducible
from lowdimfa.models import char_transformer, cnn, mlp, resnet, vit
from lowdimfa.partitioning import partition
from lowdimfa.services.trainer.api import DecoupledTrainer

WIDTH = 8
TARGETS = torch.arange(4)


def linear(outputs: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, outputs)


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)


class Cast(nn.Module):
    """A linear layer whose output is made something else."""

    def __init__(self, cast: Any) -> None:
        super().__init__()
        self.inner = linear()
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cast(self.inner(x.real if x.is_complex() else x))
        return y


class Labelled(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("cast", "kind"),
    [
        (lambda y: torch.complex(y, y), "complex"),
        (lambda y: y.to_sparse(), "of layout torch.sparse_coo"),
        (lambda y: y.as_subclass(Labelled), "a Labelled"),
    ],
)
def test_what_would_lose_something_between_blocks_is_refused(cast: Any, kind: str) -> None:
    layers = [Cast(cast), Cast(lambda y: y), linear(4)]
    if kind == "complex":  # within a block it is nobody's business
        partition(nn.Sequential(*layers), ["2"], inputs())
    with pytest.raises(InputError, match=f"'0' at a block's end, whose output is {kind}"):
        partition(nn.Sequential(layers[0], nn.Identity(), *layers[1:]), ["1"], inputs())


class Decoding(nn.Linear):
    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        return super().forward(h + code.float())


@pytest.mark.parametrize(
    "kind", [torch.int16, torch.int8, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn]
)
def test_members_of_types_that_no_wire_carries_are_refused_at_a_block_end(kind: torch.dtype) -> None:
    def coded(y: Tensor) -> Any:
        return {"h": y, "code": y.detach().abs().to(kind)}

    layers = [linear(), Cast(coded), Decoding(WIDTH, WIDTH), linear(4)]
    partition(nn.Sequential(*layers), ["3"], inputs())
    with pytest.raises(InputError, match=rf"'1' at a block's end, whose output is of {kind}.*float16.*bool"):
        partition(nn.Sequential(*layers), ["2"], inputs())


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_that_no_block_would_call_are_refused(register: str) -> None:
    model = nn.Sequential(nn.Sequential(linear(), nn.Tanh()), linear(4))
    getattr(model[0], register)(lambda *arguments: None)
    partition(model, 2, inputs())
    getattr(model, register)(lambda *arguments: None)
    with pytest.raises(InputError, match="a hook on the model itself"):
        partition(model, 2, inputs())


class Still(nn.Sequential):
    """Leaves its first layer in evaluation mode."""

    def train(self, mode: bool = True) -> Still:
        super().train(mode)
        self[0].eval()
        return self


def test_modes_that_no_block_would_set_are_refused() -> None:
    partition(
        nn.Sequential(Still(linear(), nn.Tanh()), linear(4)), 2, inputs()
    )  # a layer's own train() is called
    model = Still(linear(), nn.Tanh(), linear(4))
    with pytest.raises(InputError, match=r"a train\(True\) of the model's own that leaves '0' in evaluation"):
        partition(model, 2, inputs())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_compute_in_their_own_precision(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    layers = [linear(), nn.Sequential(linear(), nn.Tanh()), linear(4)]
    for layer in layers:
        layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    network = decouple(nn.Sequential(*layers).to(dtype), inputs(dtype)[:2], blocks=3, total_steps=2)
    seen.clear()
    network.train_step(0, [(inputs(dtype), TARGETS)])
    assert network.evaluate([(inputs(dtype), TARGETS)]).loss > 0
    assert set(seen) == {dtype}
    assert all(value.dtype == dtype for value in network.state_dict().values())


def test_the_loss_of_a_model_in_double_precision_is_plain_torchs() -> None:
    layers = [linear(), linear(4)]
    network = decouple(nn.Sequential(*layers).double(), inputs(torch.float64)[:2], blocks=2, total_steps=2)
    expected = nn.functional.cross_entropy(nn.Sequential(*layers)(inputs(torch.float64)), TARGETS)
    assert network.evaluate([(inputs(torch.float64), TARGETS)]).loss == pytest.approx(
        expected.item(), rel=1e-15
    )
    assert network.train_step(0, [(inputs(torch.float64), TARGETS)]).loss == expected.item()


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_tried_in_the_precision_in_which_they_get_outputs(weighted: bool) -> None:
    """A binary cross-entropy of probabilities, and weights of classes, take outputs of their own type alone."""
    given = inputs(torch.float64)
    targets = TARGETS if weighted else torch.rand(len(given), 4, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=torch.ones(4).double()) if weighted else nn.BCELoss()
    layers = [linear(), linear(4), nn.Sigmoid()]
    data = given, targets, given, targets
    model = nn.Sequential(*layers).double()
    options = {"blocks": 2, "steps": 1, "batch_size": 4, "engine": "local"}
    plan = DecoupledTrainer(model=model, data=data, loss=loss, metrics={"own": loss}, **options).plan()  # type: ignore[arg-type]
    assert plan.numbers == ["test_loss", *(["test_accuracy"] if weighted else []), "own"]


def in_place() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.ReLU(inplace=True), linear(), nn.Dropout(0.2, inplace=True)) for _ in range(3)),
        nn.Sequential(nn.ELU(inplace=True), linear(4)),
    )


def out_of_place() -> nn.Sequential:
    model = in_place()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


@pytest.mark.parametrize(
    "feedback",
    [
        FeedbackConfig(q_rule="probed", probe_every=1),
        FeedbackConfig(every_layer=True),
        FeedbackConfig(form="local"),
        FeedbackConfig(form="backprop"),
        FeedbackConfig(form="frozen"),
    ],
    ids=["probed", "every layer", "local", "backprop", "frozen"],
)
def test_layers_in_place_give_the_bits_of_others(feedback: FeedbackConfig) -> None:
    states, losses = [], []
    for model in (in_place(), out_of_place()):
        x = inputs()
        training = TrainingConfig(3, microbatches=2)
        network = decouple(
            model, x[:2], blocks=["1", "3"], total_steps=3, feedback=feedback, training=training
        )
        losses.append([network.train_step(step, [(x, TARGETS)] * 2).loss for step in range(3)])
        losses[-1].append(network.evaluate([(x, TARGETS)]).loss)
        states.append(network.state_dict())
        assert torch.equal(x, inputs())  # the data are somebody's
    assert losses[0] == losses[1]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def lazy() -> nn.Sequential:
    return nn.Sequential(linear(), nn.LazyBatchNorm1d(), nn.LazyLinear(WIDTH), nn.LazyLinear(4))


def test_lazy_layers_are_there_after_the_cut_with_the_draws_of_then() -> None:
    models = [lazy() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        with reproducible(seed):
            partition(model, 2, inputs())
    first, same, other = (model[3].weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    network = decouple(models[0], inputs()[:2], blocks=3, total_steps=1)
    assert network.train_step(0, [(inputs(), TARGETS)]).loss > 0


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (mlp(in_features=64, width=32, depth=3, classes=10), torch.zeros(2, 64)),
        (cnn(in_channels=1, channels=[4, 8], classes=10, image_size=8), torch.zeros(2, 1, 8, 8)),
        (resnet(in_channels=3, channels=[4, 8], classes=10), torch.zeros(2, 3, 8, 8)),
        (
            vit(image_size=8, patch_size=4, in_channels=1, width=16, depth=2, heads=2, classes=10),
            torch.zeros(2, 1, 8, 8),
        ),
        (
            char_transformer(vocabulary=11, context=6, width=16, depth=2, heads=2),
            torch.zeros(2, 6, dtype=torch.int64),
        ),
    ],
)
def test_counted_operations_are_torchs_own(model: nn.Module, example: Tensor) -> None:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(example)
    with _Operations() as counted, sdpa_kernel(SDPBackend.MATH):
        model(example)
    assert counted.floating_point == counter.get_total_flops() > 0
    assert counted.written > 0
