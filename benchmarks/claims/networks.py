"""The networks that the claims share, at a size for two cores and at one for a GPU."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from benchmarks.claims.methods import FACTORED
from benchmarks.claims.settings import Setting, Update
from lowdimfa.models import cnn, mlp, vit

PIXELS = 3 * 32 * 32
LARGE_GRID = (Update(5e-4), Update(1e-3), Update(1e-3, 0.1))
"""For long runs, in which a smaller decay is enough to forget the start."""


def fully_connected(width: int, classes: int, samples: int, epochs: int, large_epochs: int = 50) -> Setting:
    """Return a network of four linear layers on some classes of CIFAR-10."""
    name = f"MLP, 4 layers, {width} wide" + (f", {classes} classes" if classes < 10 else "")
    small = Setting(
        name,
        mlp,
        (PIXELS, width, 4, classes),
        "CIFAR-10",
        samples,
        epochs,
        batch_size=64,
        classes=classes,
    )
    large = replace(small, samples=4_100 * classes, epochs=large_epochs, batch_size=128, grid=LARGE_GRID)
    return replace(small, large=large)


def normalised_mlp(in_features: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """Return `lowdimfa.models.mlp` with batch normalisation before every ReLU."""
    model = mlp(in_features, width, depth, classes)
    for stage in list(model)[:-1]:
        if isinstance(stage, nn.Sequential):
            stage.insert(len(stage) - 1, nn.BatchNorm1d(width))
    return model


_OWN_RATES = (
    Update(5e-4, feedback_rate=5e-4),
    Update(1e-3, feedback_rate=1e-3),
    Update(1e-3, feedback_rate=1e-2),
)
"""Of feedback that needs no decay, its rate in place of that."""


def with_own_rates(setting: Setting) -> Setting:
    """Return a network whose factored feedback tries its own rates, on a GPU too."""
    grids = tuple((rule, _OWN_RATES) for rule in FACTORED)
    return replace(setting, grids=grids, large=setting.large and replace(setting.large, grids=grids))


MLP = with_own_rates(fully_connected(512, 10, 24_000, 2))
DEEP_MLP = Setting(
    "MLP, 4 hidden layers, 512 wide",
    mlp,
    (PIXELS, 512, 5, 10),
    "CIFAR-10",
    samples=41_000,
    epochs=30,
    grid=(Update(5e-4), Update(1e-3)),
)
"""For both generations of the rule, as the next ones; `generations.with_grids` makes their grids."""
DEEP_MLP_NORMALISED = replace(DEEP_MLP, label="the same with batch normalisation", model=normalised_mlp)
ERROR_DIMS = (1, 2, 4, 10, 64)
"""Tried for the chain form."""
DIRECT_ERROR_DIMS = (1, 2, 4, 10)
"""Tried for the direct form, whose error has 10 numbers."""

VGG_OUTPUT = "4.1"
"""Name of the output layer."""
VGG = Setting(
    "VGG-like CNN, 4 pairs of convolutions",
    cnn,
    (3, (16, 32, 64, 128), 10, 32, 2, 0.1),
    "CIFAR-10",
    samples=41_000,
    epochs=20,
    batch_size=64,
    grid=(Update(1e-3), Update(2e-3)),
    is_augmented=True,
)
VGG = replace(VGG, large=replace(VGG, arguments=(3, (64, 128, 256, 512), 10, 32, 2, 0.4)))

VIT = Setting(
    "vision transformer, 6 blocks, 96 wide",
    vit,
    (32, 4, 3, 96, 6, 4, 10),
    "CIFAR-10",
    samples=41_000,
    epochs=30,
    grid=(Update(5e-4), Update(1e-3)),
)
VIT = replace(
    VIT,
    large=replace(VIT, label="vision transformer, 6 blocks, 128 wide", arguments=(32, 4, 3, 128, 6, 4, 10)),
)
