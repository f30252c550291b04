"""Factory of regression data from a table."""

from __future__ import annotations

import csv

import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.sources import SOURCES, read_file
from lowdimfa.data.splits import TensorSplit
from lowdimfa.tickets import derive_seed

_NUMBERS = ("carat", "depth", "table", "x", "y", "z")
_CATEGORIES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("D", "E", "F", "G", "H", "I", "J"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
_TEST_PART = 0.1


def diamonds(seed: int = 0, root: str | None = None) -> Dataset:
    """Return measures of 53940 diamonds, for predicting the price: 48546 for training and 5394 for the test.

    Inputs are float32 ``(26,)``: the six numbers (carat, depth, table, x, y, z), standardised, and cut,
    colour and clarity as 5 + 7 + 8 zeros and ones. The target is the natural logarithm of the price in US
    dollars, standardised, float32 ``(1,)``: a model that always says the mean has a mean squared error of 1.
    Means and standard deviations are those of the training split.

    Parameters
    ----------
    seed
        Decides which diamonds are in the test split.
    root
        Data folder: ``diamonds.csv`` lies in ``root/diamonds``. Default: the environment variable
        ``LOWDIMFA_DATA``, or else ``~/.cache/lowdimfa/data``.

    Raises
    ------
    InputError
        The file is missing or has another checksum.
    """
    text = read_file(SOURCES["diamonds"], "diamonds.csv", root).decode()
    header, *rows = csv.reader(text.splitlines())
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    generator = torch.Generator().manual_seed(derive_seed(seed, "diamonds"))
    order = torch.randperm(len(rows), generator=generator)
    kept = len(rows) - round(len(rows) * _TEST_PART)

    numbers = torch.stack([_floats(columns[name]) for name in _NUMBERS], dim=1)[order]
    categories = torch.cat([_one_hot(columns[name], values) for name, values in _CATEGORIES.items()], dim=1)[
        order
    ]
    inputs = torch.cat([_standardised(numbers, kept), categories], dim=1).float()
    targets = _standardised(_floats(columns["price"]).log().unsqueeze(1)[order], kept).float()
    return Dataset(
        "diamonds",
        TensorSplit(inputs[:kept], targets[:kept]),
        TensorSplit(inputs[kept:], targets[kept:]),
        "regression",
    )


def _floats(values: tuple[str, ...]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _one_hot(values: tuple[str, ...], known: tuple[str, ...]) -> Tensor:
    position = {value: index for index, value in enumerate(known)}
    return torch.nn.functional.one_hot(torch.tensor([position[value] for value in values]), len(known))


def _standardised(values: Tensor, kept: int) -> Tensor:
    training = values[:kept]
    return (values - training.mean(0)) / training.std(0)
