"""How feature maps lie in memory: channels last where that is faster, never where a layer may see the difference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from lowdimfa.layers import reads_maps_by_shape
from lowdimfa.models import cnn, resnet, vit
from lowdimfa.services.run.model import build_model
from lowdimfa.services.spec import Specification
from lowdimfa.services.trainer.api import DecoupledTrainer

CHANNELS, SIZE = 4, 6


class Viewed(nn.Module):
    """Makes maps flat as many networks do, which torch refuses where channels come last."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.view(maps.size(0), -1)


class Strided(nn.Module):
    """Makes maps flat by where their values lie."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.as_strided(maps, (len(maps), maps[0].numel()), (maps[0].numel(), 1))


class StridedLinear(nn.Linear):
    """Does so in a layer of which torch derives a class where its weights are parametrised."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(Strided()(maps))


def network(flat: nn.Module) -> nn.Sequential:
    features = CHANNELS * SIZE**2
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(), flat, nn.Linear(features, 3))


def plain() -> nn.Sequential:
    return network(nn.Flatten())


def viewed() -> nn.Sequential:
    return network(Viewed())


def strided() -> nn.Sequential:
    return network(Strided())


class ByRows(torch.optim.SGD):
    """Makes the gradients of a convolution rows by where their values lie, as some optimisers do with ``view``."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in group["params"]:
                shape = len(weights), weights[0].numel()
                rows = torch.as_strided(weights.grad, shape, (shape[1], 1))
                weights.data.sub_(group["lr"] * functional.normalize(rows).reshape(weights.shape))


def hooked() -> nn.Sequential:
    model = plain()
    model[0].register_forward_hook(
        lambda _module, _inputs, maps: maps.view(len(maps), CHANNELS, -1).view_as(maps)
    )
    return model


def patched() -> nn.Sequential:
    model = plain()
    model[2].forward = Viewed().forward  # type: ignore[method-assign]
    return model


def loss_of(factory: Any, folder: Path, optimizer: Any = None, **model: Any) -> float:
    generator = torch.Generator().manual_seed(1)
    images, classes = torch.randn(24, 3, SIZE, SIZE, generator=generator), torch.arange(24) % 3
    trainer = DecoupledTrainer(
        model={"factory": f"{__name__}:{factory.__name__}", **model},
        data=(images, classes, images, classes),
        blocks=2,
        steps=3,
        batch_size=8,
        engine="local",
        run_dir=folder,
        **({} if optimizer is None else {"optimizer": optimizer}),
    )
    return float(trainer.fit().metrics["test_loss"])


@pytest.mark.parametrize("factory", [viewed, strided, hooked, patched])
def test_layers_that_see_where_values_lie_train_as_written(factory: Any, tmp_path: Path) -> None:
    expected = loss_of(plain, tmp_path / "plain", channels_last=False)
    assert loss_of(factory, tmp_path / "theirs") == expected


@pytest.mark.parametrize("as_object", [True, False])
def test_optimisers_that_see_where_values_lie_train_as_written(as_object: bool, tmp_path: Path) -> None:
    rows = partial(ByRows, lr=0.1) if as_object else {"factory": f"{__name__}:ByRows", "args": {"lr": 0.1}}
    expected = loss_of(plain, tmp_path / "plain", rows, channels_last=False)
    assert loss_of(plain, tmp_path / "theirs", rows) == expected


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (plain(), True),
        (weight_norm(nn.Conv2d(3, 4, 3)), True),
        (cnn(1, [4, 8], 10, 8), True),
        (resnet(3, [4, 8], 10), True),
        (vit(8, 4, 1, 16, 2, 2, 10), True),
        (viewed(), False),
        (hooked(), False),
        (patched(), False),
        (weight_norm(StridedLinear(4, 3)), False),
        (torch.jit.script(plain()), False),
        (torch.fx.symbolic_trace(plain()), False),
    ],
)
def test_code_of_others_is_told_from_torchs_and_this_packages(model: nn.Module, known: bool) -> None:
    assert reads_maps_by_shape(model) is known


@pytest.mark.parametrize(
    ("factory", "said", "last"),
    [(plain, "auto", True), (plain, False, False), (viewed, "auto", False), (viewed, True, True)],
)
def test_convolutions_keep_channels_last_where_that_is_said_or_safe(
    factory: Any, said: Any, last: bool
) -> None:
    specification = Specification.model_validate(
        {
            "model": {"factory": f"{__name__}:{factory.__name__}", "blocks": 2, "channels_last": said},
            "data": {"factory": "lowdimfa.data:digits"},
            "train": {"epochs": 1},
        }
    )
    weight = build_model(specification)[0].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last) is last
