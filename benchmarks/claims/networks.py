"""The networks that the claims share, at a size for two cores and at one for a GPU."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.claims.settings import ALIGNING, Setting, Update
from lowdimfa.models import cnn, mlp, vit

PIXELS = 3 * 32 * 32
LARGE_GRID = (Update(5e-4), Update(1e-3), Update(1e-3, 0.1))
"""For long runs, in which a smaller decay is enough to forget the start."""


def fully_connected(
    width: int, classes: int, samples: int, epochs: int, large_epochs: int = 50, label: str = ""
) -> Setting:
    """Return a network of four linear layers on some classes of CIFAR-10."""
    name = f"MLP, 4 layers, {width} wide{label}" + (f", {classes} classes" if classes < 10 else "")
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


MLP = fully_connected(512, 10, 24_000, 2)
LONG = fully_connected(512, 10, 40_000, 4, 200, ", trained longer")
ERROR_DIMS = (1, 2, 4, 10, 64)
"""Tried for the chain form."""
DIRECT_ERROR_DIMS = (1, 2, 4, 10)
"""Tried for the direct form, whose error has 10 numbers."""

VGG_OUTPUT = "4.1"
"""Name of the output layer."""
VGG = Setting(
    "VGG-like CNN, 4 blocks",
    cnn,
    (3, (16, 32, 64, 64), 10, 32, 1, 0.05),
    "CIFAR-10",
    samples=20_000,
    epochs=1,
    batch_size=32,
    grid=(Update(2e-3), Update(4e-3), Update(4e-3, 1.0)),
    large=Setting(
        "VGG-like CNN, 4 blocks", cnn, (3, (64, 128, 256, 512), 10, 32, 2, 0.1), "CIFAR-10", 41_000, 50
    ),
)

VIT = Setting(
    "vision transformer, 2 blocks, 64 wide",
    vit,
    (28, 7, 1, 64, 2, 4, 10),
    "Fashion-MNIST",
    samples=10_000,
    epochs=3,
    batch_size=64,
    grid=(Update(1e-3), Update(2e-3), Update(2e-3, ALIGNING)),
    large=Setting(
        "vision transformer, 6 blocks, 256 wide", vit, (32, 4, 3, 256, 6, 8, 10), "CIFAR-10", 41_000, 100
    ),
)
