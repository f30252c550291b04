"""Files of one's own as data: NumPy's, and folders of images, read as they are or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from lowdimfa.data import BatchOrder, Dataset, Reader, image_folder, numpy_files
from lowdimfa.errors import InputError

INPUTS = numpy.arange(60, dtype=numpy.float32).reshape(20, 3)
TARGETS = numpy.arange(20) % 3


def all_of(data: Dataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reader = Reader(data, BatchOrder(len(data.train), 1, 1, seed=0))
    reader.require_repeatable()
    train, test = reader.training(torch.arange(len(data.train))), reader.test(torch.arange(len(data.test)))
    inputs, test_inputs = train.inputs(), test.inputs()
    assert isinstance(inputs, Tensor) and isinstance(test_inputs, Tensor)
    return inputs, train.targets(), test_inputs, test.targets()


def assert_whole(data: Dataset, tests: int) -> None:
    """Every sample is in one of the splits, with its own target; which ones are, the seed decides."""
    inputs, targets, test_inputs, test_targets = all_of(data)
    assert len(test_inputs) == tests and data.task == "classification"
    order = torch.cat([inputs, test_inputs])[:, 0].argsort()
    assert torch.equal(torch.cat([inputs, test_inputs])[order], torch.from_numpy(INPUTS))
    assert torch.equal(torch.cat([targets, test_targets])[order], torch.from_numpy(TARGETS))


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    numpy.savez(tmp_path / "all.npz", inputs=INPUTS, targets=TARGETS, mask=INPUTS > 9)
    (tmp_path / "folder").mkdir()
    numpy.save(tmp_path / "folder" / "inputs.npy", INPUTS)
    numpy.save(tmp_path / "folder" / "targets.npy", TARGETS)
    numpy.savez(tmp_path / "short.npz", inputs=INPUTS, targets=TARGETS[:3])
    numpy.savez(tmp_path / "objects.npz", inputs=numpy.array([object()]), targets=TARGETS[:1])
    numpy.savez(tmp_path / "long.npz", inputs=INPUTS.astype(numpy.longdouble), targets=TARGETS)
    numpy.savez(tmp_path / "empty.npz", inputs=INPUTS[:0], targets=TARGETS[:0])
    numpy.save(tmp_path / "single.npy", INPUTS)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "all.npz").read_bytes()[:90])
    return tmp_path


def test_numpy_files_give_their_arrays(arrays: Path) -> None:
    for name in ("all.npz", "folder"):
        assert_whole(numpy_files(str(arrays / name), test=0.2), 4)
        data = numpy_files(str(arrays / name), test=str(arrays / "folder"))
        assert len(data.train) == len(data.test) == 20
    first, second = (numpy_files(str(arrays / "all.npz"), test=0.5, seed=seed) for seed in (1, 2))
    assert not torch.equal(all_of(first)[3], all_of(second)[3])
    named = numpy_files(str(arrays / "all.npz"), inputs=["inputs", "mask"]).train.inputs(torch.tensor([1]))
    assert not isinstance(named, Tensor) and list(named) == ["inputs", "mask"]


@pytest.mark.parametrize("kind", [">f4", ">i2", "<f2", "F"])
def test_numbers_are_the_same_however_a_file_has_them(tmp_path: Path, kind: str) -> None:
    stored = numpy.asfortranarray(INPUTS) if kind == "F" else INPUTS.astype(kind)
    numpy.save(tmp_path / "inputs.npy", stored)
    numpy.save(tmp_path / "targets.npy", TARGETS.astype(">i8"))
    data = numpy_files(str(tmp_path), test=str(tmp_path)).test
    found = data.inputs(torch.arange(20))
    assert isinstance(found, Tensor) and torch.equal(found.float(), torch.from_numpy(INPUTS))
    assert found.dtype == {">i2": torch.int16, "<f2": torch.float16}.get(kind, torch.float32)
    assert torch.equal(data.targets(torch.arange(20)), torch.from_numpy(TARGETS))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.npz", {}, r"none\.npz: found no file or folder"),
        (
            "all.npz",
            {"inputs": "x"},
            r"all\.npz: found no array 'x', but inputs, targets, mask; expected that",
        ),
        ("folder", {"targets": "y"}, r"folder: found no array 'y', but inputs, targets;"),
        (
            "short.npz",
            {},
            r"short\.npz: found 20 samples of 'inputs' and 3 of 'targets'; expected one target",
        ),
        ("objects.npz", {}, r"objects\.npz: found what can't be taken \(Object arrays cannot"),
        (
            "single.npy",
            {},
            r"single\.npy: found what can't be taken \(a single array\); expected a \.npz file",
        ),
        ("torn.npz", {}, r"torn\.npz: found what can't be taken"),
        ("all.npz", {"test": 0.01}, r"numpy_files: test: found 0\.01; expected a path, or a fraction of 20"),
        ("all.npz", {"test": 1.5}, r"numpy_files: test: found 1\.5"),
        ("all.npz", {"test": None}, r"numpy_files: test: found None; expected a path, or a fraction"),
        ("all.npz", {"inputs": []}, r"numpy_files: inputs: found \[\]; expected the name"),
        ("long.npz", {}, r"long\.npz: found 'inputs' of type float128 .*; expected numbers of at most 64"),
        ("empty.npz", {"test": "all.npz"}, r"empty\.npz: found no samples; expected at least one"),
    ],
)
def test_other_numpy_files_are_refused(
    arrays: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(arrays)
    with pytest.raises(InputError, match=message):
        numpy_files(str(arrays / name), **options)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve grey pictures of two classes, each of one shade, and wider than high."""
    for number in range(12):
        folder = tmp_path / "all" / ("cat", "dog [1]")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (number * 20,) * 3).save(folder / f"{number:02}.png")
    (tmp_path / "all" / "cat" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_images_gives_standardised_pixels_and_classes_by_name(pictures: Path) -> None:
    data = image_folder(str(pictures / "all"), size=4, test=0.25)
    inputs, targets, test_inputs, test_targets = all_of(data)
    assert inputs.shape == (9, 3, 4, 4) and test_inputs.shape == (3, 3, 4, 4)
    every, classes = torch.cat([inputs, test_inputs])[:, 0, 0, 0], torch.cat([targets, test_targets])
    shades = torch.arange(12.0) * 20 / 255
    order = every.argsort()
    training = shades[torch.isin(order, torch.arange(9))]  # what is held out tells nothing
    expected = (shades - training.mean()) / training.std(correction=0)
    torch.testing.assert_close(every[order], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(classes[order], torch.arange(12) % 2)
    plain = image_folder(str(pictures / "all"), 4, str(pictures / "all"), True, [0.0], [1.0])
    assert torch.equal(all_of(plain)[0][:, 0, 0, 0].sort().values, shades)


def test_what_is_sorted_by_class_is_not_held_out_class_by_class(pictures: Path, arrays: Path) -> None:
    path, ordered = str(pictures / "all"), str(arrays / "ordered.npz")
    numpy.savez(ordered, inputs=INPUTS, targets=numpy.sort(TARGETS))
    for test in (0.25, None):
        for data in (image_folder(path, 4, test or path), numpy_files(ordered, test=test or ordered)):
            held = data.with_validation(0.5)
            for split in (held.train, held.test, data.limited(len(data.train) // 2).train):
                assert len(set(split.targets(torch.arange(len(split))).tolist())) > 1


def test_pictures_are_taken_as_they_look_or_refused(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "all" / "one", tmp_path / "elsewhere"
    for place in (folder, elsewhere, tmp_path / "all" / ".checkpoints"):
        place.mkdir(parents=True)
    turned, upright = Image.new("L", (8, 4), 0), Image.Exif()
    turned.paste(255, (0, 0, 4, 4))
    upright[0x112] = 6  # to be turned by 90°, as of a telephone that was held upright
    turned.save(folder / "1.png", exif=upright)
    (folder / "._1.png").write_bytes(b"of another system")
    turned.save(elsewhere / "2.png")
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    data = image_folder(str(tmp_path / "all"), 4, str(tmp_path / "all"), True, [0.0], [1.0])
    found = data.test.inputs(torch.arange(2))
    assert isinstance(found, Tensor) and len(data.train) == len(data.test) == 2
    assert torch.equal(found[0, 0].mean(1), torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(found[1, 0].mean(0), torch.tensor([1.0, 1, 0, 0]))
    for name, deep in (("1.png", numpy.uint16), ("1.tif", numpy.float32)):
        Image.fromarray(numpy.full((4, 4), 400, deep)).save(folder / name)
        with pytest.raises(InputError, match=rf"{name}: found an image of Pillow's mode .*; expected 8 bits"):
            image_folder(str(tmp_path / "all"), 4, str(tmp_path / "all"))
        (folder / name).unlink()


def test_all_pictures_of_a_class_are_taken_or_named(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name, kind in (("1.pgm", "PPM"), ("2.jfif", "JPEG"), ("3.PNG", "PNG")):
        Image.new("L", (4, 4), 9).save(tmp_path / "one" / name, kind)
    assert len(image_folder(str(tmp_path), 4, str(tmp_path), True, [0.0], [1.0]).train) == 3
    (tmp_path / "one" / "4.HEIC").write_bytes(b"of a telephone")
    with pytest.raises(
        InputError, match=r"one: found 4\.HEIC, which would be left out; expected images in one of"
    ):
        image_folder(str(tmp_path), 4)
    (tmp_path / "one" / "4.HEIC").unlink()
    (tmp_path / "one" / "5.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"one/5\.png: found a link to nothing"):
        image_folder(str(tmp_path), 4)


def test_a_picture_keeps_its_middle(tmp_path: Path) -> None:
    stripes = Image.new("L", (12, 4), 0)
    stripes.paste(255, (4, 0, 8, 4))
    (tmp_path / "one").mkdir()
    stripes.save(tmp_path / "one" / "1.png")
    data = image_folder(str(tmp_path), 4, str(tmp_path), True, [0.0], [1.0])
    assert torch.equal(all_of(data)[0], torch.ones(1, 1, 4, 4))


def test_other_folders_of_images_are_refused(pictures: Path) -> None:
    path = str(pictures / "all")
    (pictures / "other" / "bird").mkdir(parents=True)
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: image_folder(str(pictures / "no"), 4), "no: found no file or folder"),
        (lambda: image_folder(f"{path}/cat", 4), "cat: found no folders in it; expected one for each class"),
        (lambda: image_folder(path, 0), "image_folder: size: found 0"),
        (
            lambda: image_folder(path, 4, mean=[0.5]),
            r"image_folder: mean: found \[0\.5\]; expected 3 numbers",
        ),
        (lambda: image_folder(path, 4, std=[1, 0, 1]), "image_folder: std: found"),
        (
            lambda: image_folder(path, 4, str(pictures / "other")),
            "other: found the class 'bird'; expected those of",
        ),
        (
            lambda: image_folder(str(pictures / "other"), 4),
            r"other/bird: found no image; expected some \(\.bmp",
        ),
    ]
    for call, message in refused:
        with pytest.raises(InputError, match=message):
            call()
    (pictures / "all" / "cat" / "00.png").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"cat/00\.png: found what can't be read as an image"):
        image_folder(path, 4)
