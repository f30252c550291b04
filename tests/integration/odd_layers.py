"""Layers, an optimiser and a loss of a user's own, all of which draw random numbers or work in place; and a tap."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lowdimfa.grid_tap import GridNormalisedTap


class SmallGrid(GridNormalisedTap):
    """A grid that is coarser than maps of digits are."""

    cells = 2


class Odd(nn.Module):
    """Writes to its input, scales itself at random, runs again in its backward pass, and drops out in evaluation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.layers, x.relu_(), use_reentrant=False)
        if self.training and random.random() < 0.3:
            y = y * numpy.random.uniform(0.5, 1.5)
        return functional.dropout(y, 0.1, training=True)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), Odd(64, 24), Odd(24, 24), Odd(24, 24), nn.Linear(24, 10))


class Stopping(nn.Linear):
    """Stops its whole process when that saves it while a file is there."""

    def __init__(self, inputs: int, outputs: int, trap: str) -> None:
        super().__init__(inputs, outputs)
        self.trap = Path(trap)

    def get_extra_state(self) -> int:
        if self.trap.exists():
            os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    def set_extra_state(self, state: int) -> None:
        pass


def stopping(trap: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), Stopping(16, 16, trap), nn.Linear(16, 10)
    )


class NoisySGD(torch.optim.SGD):
    """Gradient descent that adds noise to the weights."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        scale = 1e-3 * random.random() * numpy.random.uniform()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter += scale * torch.randn_like(parameter)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with noise on the logits."""
    return functional.cross_entropy(outputs + 0.1 * torch.randn_like(outputs), targets)
