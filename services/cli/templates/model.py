"""The model: layers one after the other, between which it may be cut into blocks."""

from torch import nn


def make_model(width: int = 128) -> nn.Module:
    """Return a network for 64 inputs and 10 classes.

    An ``nn.Sequential`` is cut between its members; what belongs together is a member of its own. A module of another
    kind lists its layers by name in an attribute ``layers``. It starts from the same weights in every run with the same
    ``train.seed``.
    """
    return nn.Sequential(
        nn.Sequential(nn.Linear(64, width), nn.LayerNorm(width), nn.ReLU()),
        nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()),
        nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()),
        nn.Linear(width, 10),
    )
