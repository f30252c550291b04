"""Plain convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def cnn(
    in_channels: int,
    channels: Sequence[int],
    classes: int,
    image_size: int,
    convs_per_block: int = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a VGG-like network: stages that each halve the image, then a linear layer.

    Parameters
    ----------
    in_channels, image_size
        Of the input, shape ``(batch, in_channels, image_size, image_size)``.
    channels
        Feature maps of each stage.
    classes
        Outputs per sample.
    convs_per_block
        Convolutions (each with batch normalisation and ReLU) in a stage.
    dropout
        Probability with which a feature is dropped at the end of each stage.

    Raises
    ------
    ValueError
        There are no channels or convolutions, or the image is halved to nothing.
    """
    if not channels or convs_per_block < 1:
        raise ValueError(
            f"channels is {list(channels)} and convs_per_block {convs_per_block}; both need at least 1"
        )
    final_size = image_size // 2 ** len(channels)
    if final_size == 0:
        raise ValueError(
            f"{len(channels)} stages halve an image of {image_size} pixels to nothing; "
            f"list fewer channels or give an image of at least {2 ** len(channels)} pixels"
        )
    stages = []
    for outputs in channels:
        parts: list[nn.Module] = []
        for _ in range(convs_per_block):
            parts += [
                nn.Conv2d(in_channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            in_channels = outputs
        parts.append(nn.MaxPool2d(2))
        if dropout:
            parts.append(nn.Dropout(dropout))
        stages.append(nn.Sequential(*parts))
    stages.append(nn.Sequential(nn.Flatten(), nn.Linear(in_channels * final_size**2, classes)))
    return nn.Sequential(*stages)
