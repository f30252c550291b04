"""The networks of the long grids: ten times the work of the usual ones and more, all training samples."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gap.networks import GRID, NETWORKS, Network
from lowdimfa.models import cnn, vit

_CIFAR = {"data": "CIFAR-10", "samples": 41_600, "target": 1.0}
"""All that the validation split leaves, in whole batches."""

ROWS = {
    "mlp": replace(
        NETWORKS["mlp"],
        label="MLP 4×512, Fashion-MNIST, full data, 40 epochs",
        samples=50_000,
        epochs=40,
        grid=GRID,
        target=0.2,
    ),
    "cnn": replace(
        NETWORKS["cnn"],
        label="CNN, Fashion-MNIST, full data, 20 epochs",
        samples=50_000,
        epochs=20,
        grid=GRID,
        target=0.2,
    ),
    "cifar": Network(
        "CNN (two convolutions per block), 32-64-128 channels, CIFAR-10, full data, 15 epochs",
        cnn,
        (3, (32, 64, 128), 10, 32, 2),
        epochs=15,
        **_CIFAR,  # type: ignore[arg-type]
    ),
    "vit": Network(
        "vision transformer of 8 layers, CIFAR-10, full data, 12 epochs",
        vit,
        (32, 4, 3, 64, 8, 4, 10),
        epochs=12,
        **_CIFAR,  # type: ignore[arg-type]
    ),
}
