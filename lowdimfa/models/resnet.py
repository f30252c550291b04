"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation, added to a shortcut (He et al., arXiv:1512.03385).

    The shortcut is the identity where the shape stays, and a strided 1×1 convolution where it changes.
    """

    residual_stream: ClassVar[bool] = True

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, channels, ⌈h/stride⌉, ⌈w/stride⌉)``."""
        return functional.relu(self.branch(x) + self.shortcut(x))


def resnet(
    in_channels: int, channels: Sequence[int], classes: int, blocks_per_stage: int = 2
) -> nn.Sequential:
    """Return a residual network: a stem, groups of residual blocks, and a head.

    The stem, every residual block, and the head (average over pixels, then a linear layer) are one stage
    each. Every group but the first begins by halving the image.

    Parameters
    ----------
    in_channels
        Of the input, shape ``(batch, in_channels, height, width)``.
    channels
        Feature maps of each group.
    classes
        Outputs per sample.
    blocks_per_stage
        Residual blocks in a group.

    Raises
    ------
    ValueError
        There are no channels or no blocks.
    """
    if not channels or blocks_per_stage < 1:
        raise ValueError(
            f"channels is {list(channels)} and blocks_per_stage {blocks_per_stage}; both need at least 1"
        )
    width = channels[0]
    stem = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
    stages: list[nn.Module] = [stem]
    for group, outputs in enumerate(channels):
        for block in range(blocks_per_stage):
            stages.append(ResidualBlock(width, outputs, stride=2 if group > 0 and block == 0 else 1))
            width = outputs
    stages.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)))
    model = nn.Sequential(*stages)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
