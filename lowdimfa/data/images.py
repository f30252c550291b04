"""Factories of image classification data."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.sources import SOURCES, Source, read_file
from lowdimfa.data.splits import TensorSplit
from lowdimfa.errors import InputError
from lowdimfa.tickets import derive_seed

_DIGITS_TEST = 297


@dataclass(frozen=True)
class Standardise:
    """Scale bytes ``(batch, channels, …)`` to [0, 1], then to zero mean and unit variance per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images as float32."""
        shape = (-1,) + (1,) * (images.dim() - 2)
        mean, std = (255 * torch.tensor(value).view(shape) for value in (self.mean, self.std))
        return (images - mean) / std


def digits(seed: int = 0) -> Dataset:
    """Return the 8x8 handwritten digits that scikit-learn bundles: 1500 training and 297 test images.

    Inputs are float32 ``(1, 8, 8)``, standardised with the mean and standard deviation of all training
    pixels; targets are the classes 0 to 9. ``seed`` decides which images are in the test split.
    """
    # The file alone: importing scikit-learn takes 2 s, in each process that reads data.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    rows = torch.from_numpy(numpy.loadtxt(path, delimiter=","))
    generator = torch.Generator().manual_seed(derive_seed(seed, "digits"))
    rows = rows[torch.randperm(len(rows), generator=generator)]
    images = rows[:, :64].float().view(-1, 1, 8, 8) / 16
    targets = rows[:, 64].to(torch.int64)
    training = images[:-_DIGITS_TEST]
    images = (images - training.mean()) / training.std()
    return Dataset(
        "digits",
        TensorSplit(images[:-_DIGITS_TEST], targets[:-_DIGITS_TEST]),
        TensorSplit(images[-_DIGITS_TEST:], targets[-_DIGITS_TEST:]),
        "classification",
    )


def mnist(root: str | None = None) -> Dataset:
    """Return MNIST: 60000 training and 10000 test images of handwritten digits.

    Inputs are float32 ``(1, 28, 28)``, standardised; targets are the classes 0 to 9.

    Parameters
    ----------
    root
        Data folder: the files ``train-images-idx3-ubyte`` and so on, gzipped or not, lie in ``root/mnist``.
        Default: the environment variable ``LOWDIMFA_DATA``, or else ``~/.cache/lowdimfa/data``.

    Raises
    ------
    InputError
        A file is missing or has another checksum.
    """
    return _idx_dataset(SOURCES["mnist"], root, Standardise((0.1307,), (0.3081,)))


def fashion_mnist(root: str | None = None) -> Dataset:
    """Return Fashion-MNIST: 60000 training and 10000 test images of 10 kinds of clothing.

    Inputs are float32 ``(1, 28, 28)``, standardised; targets are the classes 0 to 9. The files lie in
    ``root/fashion_mnist``; for ``root`` and errors see `mnist`.
    """
    return _idx_dataset(SOURCES["fashion_mnist"], root, Standardise((0.2860,), (0.3530,)))


def cifar10(root: str | None = None) -> Dataset:
    """Return CIFAR-10: 50000 training and 10000 test photographs of 10 kinds of things.

    Inputs are float32 ``(3, 32, 32)``, standardised per channel; targets are the classes 0 to 9. The files
    in ``root/cifar10`` are ``data_batch_1.png`` to ``data_batch_5.png`` and ``test_batch.png``, with one
    image per row of 1024 pixels, and the labels as JSON lists. For ``root`` and errors see `mnist`.
    """
    source = SOURCES["cifar10"]
    transform = Standardise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

    def split(pictures: list[str], labels: str) -> TensorSplit:
        images = torch.cat([_decode_rows(read_file(source, picture, root)) for picture in pictures])
        targets = torch.tensor(json.loads(read_file(source, labels, root)), dtype=torch.int64)
        return TensorSplit(images, targets, transform)

    training = [f"data_batch_{number}.png" for number in range(1, 6)]
    return Dataset(
        "cifar10",
        split(training, "train_lables.json"),
        split(["test_batch.png"], "test_lables.json"),
        "classification",
    )


def parse_idx(content: bytes, where: str) -> Tensor:
    """Return the array of bytes that an IDX file holds, uint8.

    The format is two zero bytes, the type (8: unsigned bytes), the number of dimensions, each dimension as a
    big-endian 32-bit integer, and the values.

    Raises
    ------
    InputError
        The contents aren't an IDX file of bytes, or have another length than the dimensions say.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(where, f"a file that starts with {content[:4]!r}", "an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:]
    if len(content) < start or values.numel() != torch.Size(shape).numel():
        raise InputError(where, f"{values.numel()} values for the dimensions {shape}", "as many as they say")
    return values.view(shape)


def _idx_dataset(source: Source, root: str | None, transform: Standardise) -> Dataset:
    def split(part: str) -> TensorSplit:
        images, labels = (
            parse_idx(read_file(source, name, root), name)
            for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        )
        return TensorSplit(images.unsqueeze(1), labels.to(torch.int64), transform)

    return Dataset(source.name, split("train"), split("t10k"), "classification")


def _decode_rows(png: bytes) -> Tensor:
    """Return the images, uint8 ``(images, 3, 32, 32)``, of a picture with one image per row."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
