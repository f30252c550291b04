"""Factory of data made up by a random network, of any size and dimension."""

from __future__ import annotations

import torch

from lowdimfa.data.base import Dataset, Task
from lowdimfa.data.splits import TensorSplit
from lowdimfa.errors import InputError
from lowdimfa.tickets import derive_seed


def teacher(
    in_features: int = 32,
    outputs: int = 10,
    samples: int = 4096,
    test_samples: int = 1024,
    width: int = 64,
    seed: int = 0,
    task: Task = "classification",
) -> Dataset:
    """Return samples labelled by a fixed random network ``y = V tanh(W x)`` with ``width`` hidden units.

    Inputs are standard normal, float32 ``(in_features,)``. The weights are normal and scaled so that hidden
    pre-activations have unit variance.

    Parameters
    ----------
    outputs
        Number of classes, or of values to predict.
    seed
        Decides the network and the samples. The network doesn't depend on the numbers of samples.
    task
        ``classification``: the target is the index of the largest output, int64. ``regression``: the targets
        are the outputs, standardised with the training samples' statistics, float32 ``(outputs,)``.

    Raises
    ------
    InputError
        The task is another one.
    """
    if task not in ("classification", "regression"):
        raise InputError("teacher: task", repr(task), "classification or regression")

    def normal(purpose: str, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "teacher", purpose))
        return torch.randn(*shape, generator=generator)

    hidden = normal("hidden", in_features, width) / in_features**0.5
    readout = normal("readout", width, outputs)
    inputs, test_inputs = normal("train", samples, in_features), normal("test", test_samples, in_features)
    values, test_values = ((part @ hidden).tanh() @ readout for part in (inputs, test_inputs))
    if task == "classification":
        targets, test_targets = values.argmax(1), test_values.argmax(1)
    else:
        mean, std = values.mean(0), values.std(0)
        targets, test_targets = (values - mean) / std, (test_values - mean) / std
    return Dataset("teacher", TensorSplit(inputs, targets), TensorSplit(test_inputs, test_targets), task)
