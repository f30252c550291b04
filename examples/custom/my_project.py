"""A model and a data set of your own; ``spec.yaml`` names the two functions below."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpiralClassifier(nn.Module):
    """Says on which arm of a spiral a point of the plane lies."""

    # The layers in the order in which they run, by attribute name: between them the model may be cut into
    # blocks. Each takes one tensor and returns one. An nn.Sequential needs no such list.
    layers = ("features", "hidden", "output")

    def __init__(self, width: int, arms: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width), nn.ReLU())
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.output = nn.Linear(width, arms)

    def forward(self, points: Tensor) -> Tensor:
        """Return logits ``(batch, arms)`` for points ``(batch, 2)``; the runtime runs the layers itself."""
        for name in self.layers:
            points = getattr(self, name)(points)
        return points


def make_model(width: int, arms: int = 3) -> nn.Module:
    """Return the model. It starts from the same weights in every run with the same `train.seed`."""
    return SpiralClassifier(width, arms)


def make_data(samples: int, arms: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training inputs and targets, then test inputs and targets.

    Inputs are float32 ``(samples, 2)``. Targets are integer classes ``(samples,)``: that makes it a
    classification. With float targets it would be a regression.
    """
    # Blocks load the data in processes of their own; this generator makes it the same in all of them.
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(arms, (samples,), generator=generator)
    radius = torch.rand(samples, generator=generator)
    angle = 2 * torch.pi * targets / arms + 4 * radius + 0.1 * torch.randn(samples, generator=generator)
    inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    split = samples * 3 // 4
    return inputs[:split], targets[:split], inputs[split:], targets[split:]
