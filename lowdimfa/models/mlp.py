"""Fully connected networks."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(in_features: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """Return a multi-layer perceptron with ReLU between its linear layers.

    Parameters
    ----------
    in_features
        Values per sample; the input is flattened, so its shape is free.
    width
        Units of every hidden layer.
    depth
        Linear layers in all, the output layer included.
    classes
        Outputs per sample.

    Raises
    ------
    ValueError
        The depth is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, but the output layer alone makes 1")
    sizes = [in_features] + [width] * (depth - 1)
    stages = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
    stages.append(nn.Sequential(nn.Linear(sizes[-1], classes)))
    stages[0].insert(0, nn.Flatten())
    return nn.Sequential(*stages)
