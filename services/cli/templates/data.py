"""The data: handwritten digits of 8 by 8 pixels, which come with scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def make_data(test: int = 297) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training inputs and targets, then test inputs and targets.

    Inputs are float32 ``(samples, 64)``. Targets are integers ``(samples,)``, so it is a classification; with float
    targets it would be a regression. In place of four tensors two ``torch.utils.data.Dataset`` will do, one for training
    and one for the test.
    """
    images, classes = load_digits(return_X_y=True)
    # Several processes make the data, each for itself: what is random here needs a seed, so that all get the same.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs = (torch.from_numpy(images).float() / 8 - 1)[order]
    targets = torch.from_numpy(classes).long()[order]
    return inputs[:-test], targets[:-test], inputs[-test:], targets[-test:]
