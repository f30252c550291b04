"""Factory of image classification data from a folder of images, with a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from lowdimfa.data.base import Dataset
from lowdimfa.data.folders import files_below
from lowdimfa.data.held_out import class_names, existing, with_test
from lowdimfa.data.items import ItemSplit
from lowdimfa.data.splits import SubSplit
from lowdimfa.errors import InputError, some_of

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_OTHERS = frozenset(
    [
        ".apng",
        ".avif",
        ".dng",
        ".heic",
        ".heif",
        ".j2k",
        ".jp2",
        ".jpe",
        ".jxl",
        ".pbm",
        ".pcx",
        ".pnm",
        ".psd",
        ".tga",
    ]
)
"""Of pictures too, which Pillow can't read everywhere or alike."""

_MEASURED = 1024
"""Training images of which mean and standard deviation are computed."""


@dataclass
class ImageFiles:
    """Images in files, read when they are drawn: float32 ``(channels, size, size)`` and the number of the class.

    Attributes
    ----------
    files
        Path and class of each.
    size, mode
        Side in pixels, and Pillow's name of the colours, ``RGB`` or ``L``.
    mean, std
        Of each channel, on a scale of 0 to 1.
    """

    files: list[tuple[Path, int]]
    size: int
    mode: str
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, number = self.files[index]
        return (self.pixels(path) - self.mean) / self.std, number

    def pixels(self, path: Path) -> Tensor:
        """Return an image, its shorter side resized to the size and the middle cut out, from 0 to 1.

        Raises
        ------
        InputError
            The file can't be read as an image, or has more than 8 bits for each channel, which Pillow would clip.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as opened:
                if opened.mode[0] in "IF":
                    raise InputError(
                        str(path), f"an image of Pillow's mode {opened.mode!r}", "8 bits for each channel"
                    )
                upright = ImageOps.exif_transpose(opened).convert(self.mode)
                image = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(str(path), f"what can't be read as an image ({error})", "an image") from error
        values = torch.from_numpy(numpy.array(image)).view(self.size, self.size, -1)
        return values.permute(2, 0, 1).contiguous().float() / 255


def image_folder(
    path: str,
    size: int,
    test: str | float = 0.1,
    grey: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Return images of a folder that has a folder for each class: ``path/CLASS/….jpg``, at any depth.

    Inputs are float32 ``(3, size, size)``, or with ``grey`` of one channel: the shorter side is resized to ``size``, the
    middle cut out, each channel standardised. Targets are the classes, numbered in the order of their names.

    Parameters
    ----------
    path
        Of the folder.
    size
        Pixels of a side.
    test
        Folder of the test images, with the same classes; or what part of all images they are.
    grey
        Whether colours are left out.
    mean, std
        Of each channel, on a scale of 0 to 1; by default those of up to 1,024 training images.
    seed
        Decides which images are in a part, and the order of the training images.
    classes
        Names of the folders in the order of the classes' numbers; by default they are sorted.

    Raises
    ------
    InputError
        There are no such folders, no images, or other classes in the test folder; or one can't be read.
    """
    if size < 1:
        raise InputError("image_folder: size", str(size), "at least 1")
    channels, mode = (1, "L") if grey else (3, "RGB")
    found = _classes(existing(path, "image_folder: path"))
    order = found if classes is None else class_names(classes, "image_folder: classes")
    if sorted(order) != found:
        raise InputError("image_folder: classes", ", ".join(order), f"the folders {', '.join(found)}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != channels or (name == "std" and min(values) <= 0)):
            raise InputError(f"image_folder: {name}", repr(values), f"{channels} numbers, of std above 0")
    read: list[ImageFiles] = []

    def files(folder: str) -> ItemSplit:
        read.append(ImageFiles(_files(folder, order), size, mode, torch.zeros(1), torch.ones(1)))
        return ItemSplit(read[-1], "image_folder")

    data = with_test("image_folder", files, path, test, seed)
    assert isinstance(data.train, SubSplit)
    measured = _measured(read[0], data.train.chosen) if mean is None or std is None else []
    for images in read:
        images.mean, images.std = (
            measured[part] if values is None else torch.tensor(values).view(-1, 1, 1)
            for part, values in enumerate((mean, std))
        )
    return replace(data, classes=tuple(order), images=_processor(read[0]))


def _processor(images: ImageFiles) -> dict[str, Any]:
    """Return what makes the same inputs in ``transformers``, of grey pictures where colours are left out here."""
    size = images.size
    return {
        "image_processor_type": "CLIPImageProcessor",  # which resizes the shorter side and crops
        "do_convert_rgb": images.mode == "RGB",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images.mean.flatten().tolist(),
        "image_std": images.std.flatten().tolist(),
    }


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise InputError(str(folder), "no folders in it", "one for each class, with its images")
    return names


def _files(path: str, classes: list[str]) -> list[tuple[Path, int]]:
    folder = existing(path, "image_folder: path")
    if unknown := [name for name in _classes(folder) if name not in classes]:
        raise InputError(str(folder), f"the class {unknown[0]!r}", f"those of training, {', '.join(classes)}")
    files: list[tuple[Path, int]] = []
    for number, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        images = _images(folder / name)
        if not images:
            raise InputError(str(folder / name), "no image", f"some ({', '.join(SUFFIXES)})")
        files += [(file, number) for file in images]
    return files


def _images(folder: Path) -> list[Path]:
    """Return the images at any depth, through links too.

    Raises
    ------
    InputError
        There are some of another format, which would be left out, or what can't be read.
    """
    files = files_below(folder)
    if left := [str(file.relative_to(folder)) for file in files if file.suffix.lower() in _OTHERS]:
        raise InputError(
            str(folder),
            f"{some_of(left)}, which would be left out",
            f"images in one of {', '.join(SUFFIXES)}",
            "Convert them, or move them away.",
        )
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _measured(images: ImageFiles, training: Tensor) -> list[Tensor]:
    """Return mean and standard deviation of each channel, ``(channels, 1, 1)``, over some training images."""
    every = [images.files[index] for index in training[:_MEASURED].tolist()]
    moments = torch.zeros(2, 1 if images.mode == "L" else 3, dtype=torch.float64)
    for path, _ in every:
        pixels = images.pixels(path).double()
        moments += torch.stack([pixels.mean((1, 2)), pixels.square().mean((1, 2))])
    mean, square = moments / len(every)
    std = (square - mean.square()).clamp(min=0).sqrt()
    return [value.float().view(-1, 1, 1) for value in (mean, std.where(std > 1e-6, torch.ones_like(std)))]
