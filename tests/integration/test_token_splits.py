"""Samples of token files: windows, documents, positions, and what isn't to be predicted."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowdimfa.data import BatchOrder, Dataset, Reader, tokens
from lowdimfa.data.base import bytes_per_target
from lowdimfa.data.preparing import Recipe, prepare
from lowdimfa.data.token_files import Manifest, Part, PartWriter
from lowdimfa.errors import InputError
from lowdimfa.services.trainer.api import DecoupledTrainer

END, PAD = 0, 7


def written(folder: Path, train: list[list[int]], test: list[list[int]] | None = None) -> Path:
    """Write documents of given tokens, each of which END ends."""
    folder.mkdir(exist_ok=True)
    parts = []
    for split, own in (("train", train), ("test", test or train)):
        writer = PartWriter(folder, split, "uint16", END)
        for document in own:
            writer.add(document, len(document), True, True)
        parts.append(writer.close())
    Manifest(50, "uint16", END, PAD, *parts, {}).write(folder)
    return folder


def everything(data: Dataset) -> tuple[Any, Tensor]:
    indices = torch.arange(len(data.train))
    return data.train.inputs(indices), data.train.targets(indices)


def documents() -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(1, 49), max_size=9), min_size=2, max_size=12)


@given(documents(), st.integers(1, 6))
def test_packed_windows_have_every_token_once(own: list[list[int]], context: int) -> None:
    stream = [token for document in own for token in [*document, END]]
    starts = np.cumsum([0, *(len(document) + 1 for document in own)])
    if len(stream) <= context:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(written(Path(folder), own))
        inputs, targets = everything(tokens(path, context))
        windows = (len(stream) - 1) // context
        assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == (windows, context)
        assert inputs.flatten().tolist() == stream[: windows * context]
        assert targets.flatten().tolist() == stream[1 : windows * context + 1]

        masked = tokens(path, context, documents="mask", position_ids=True)
        inputs, hidden = everything(masked)
        # The first token of a document, which END of another one comes before, is no target; all others are.
        for place, (target, found) in enumerate(zip(stream[1:], hidden.flatten().tolist(), strict=False)):
            assert found == (-100 if place + 1 in starts else target)
        assert inputs["input_ids"].flatten().tolist() == stream[: windows * context]
        for place, position in enumerate(inputs["position_ids"].flatten().tolist()):
            begins = max(int(starts[starts <= place][-1]), place // context * context)
            assert position == place - begins


@given(documents(), st.integers(1, 6))
def test_samples_of_documents_predict_every_token_of_a_document_once(
    own: list[list[int]], context: int
) -> None:
    if not any(own):
        return
    with tempfile.TemporaryDirectory() as folder:
        data = tokens(str(written(Path(folder), own)), context, pack=False, position_ids=True)
        inputs, targets = everything(data)
        found: list[list[int]] = []
        for ids, mask, positions, row in zip(*inputs.values(), targets, strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (context - length) and length > 0
            assert ids[length:].tolist() == [PAD] * (context - length)
            assert row[length:].tolist() == [-100] * (context - length)
            assert positions.tolist() == list(range(context))
            assert ids[1:length].tolist() == row[: length - 1].tolist()
            found.append([*ids[:length].tolist(), int(row[length - 1])])
        expected = []
        for document in own:
            full = [*document, END]
            expected += [full[i : i + context + 1] for i in range(0, len(document), context)]
        assert found == expected


def test_few_indices_are_read_alone_and_in_any_order(tmp_path: Path) -> None:
    own = [list(range(1, 40)), [5, 6], list(range(1, 30))]
    for pack in (True, False):
        data = tokens(str(written(tmp_path, own)), 4, pack=pack, position_ids=True)
        inputs, targets = everything(data)
        some = torch.tensor([5, 0, 5, 3])
        assert torch.equal(data.train.targets(some), targets[some])
        for name, values in data.train.inputs(some).items():
            assert torch.equal(values, inputs[name][some])


@pytest.mark.parametrize("pack", [True, False])
def test_a_target_stands_for_the_bytes_of_its_split_over_its_tokens(pack: bool, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Ich weiß nicht, was soll es bedeuten. " * 50, encoding="utf-8")
    (tmp_path / "short.txt").write_text("– nothing –", encoding="utf-8")
    size = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    folder = tmp_path / "tokens"
    manifest, _ = prepare(Recipe([str(tmp_path)], vocabulary=300, validation=0.3), folder)
    data = tokens(str(folder), 8, pack=pack)
    told = [bytes_per_target(split) or 0.0 for split in (data.train, data.test)]
    lengths = [len(np.fromfile(folder / f"{name}.bin", "<u2")) for name in ("train", "test")]
    assert told == [manifest.train.bytes / lengths[0], manifest.test.bytes / lengths[1]]
    assert sum(map(math.prod, zip(told, lengths, strict=True))) == pytest.approx(size, rel=1e-12)

    nothing = tokens(str(written(tmp_path / "empty", [[]] * 9)), 1)
    assert bytes_per_target(nothing.train) is None


def test_a_pickled_split_carries_no_tokens(tmp_path: Path) -> None:
    data = tokens(str(written(tmp_path, [[3] * 20_000])), 8)
    carried = pickle.dumps(data)
    assert len(carried) < 2000
    assert torch.equal(everything(pickle.loads(carried))[0], everything(data)[0])


def test_drawing_reads_only_what_is_drawn(tmp_path: Path) -> None:
    """The file is far larger than memory, and a hole but for its first page."""
    folder, size = written(tmp_path, [[3] * 50]), 2**40
    manifest = Manifest.read(folder)
    os.truncate(folder / "train.bin", size)
    replace(manifest, train=Part(size // 2, 1, 1, ("a", "b"))).write(folder)
    data = tokens(str(folder), 32)
    assert data.train.inputs(torch.tensor([0])).tolist() == [[3] * 32]
    reader = Reader(data, BatchOrder(100, 4, 1, seed=0))
    assert ";" not in reader.fingerprint()
    reader.require_repeatable()
    assert max(int(targets.max()) for targets in reader.known_targets(16)) == 49


def test_processes_with_other_tokens_are_told_apart(tmp_path: Path) -> None:
    def fingerprint(name: str, train: list[list[int]]) -> str:
        data = tokens(str(written(tmp_path / name, train, [[1] * 99])), 8)
        return Reader(data, BatchOrder(len(data.train), 4, 1, seed=0)).fingerprint()

    # One token out of many, in a window that is not among those looked at.
    own = [[3] * 80_000]
    other = [own[0].copy()]
    other[0][8 * 77 + 1] = 4
    assert fingerprint("a", own) == fingerprint("b", own) != fingerprint("c", other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "tokens: context: found 0"),
        ({"documents": "apart"}, "tokens: documents: found 'apart'"),
        ({"documents": "mask", "pack": False}, "'mask' with pack: false"),
        ({"context": 500}, "a train split of 101 tokens; expected more than the 500"),
        ({"path": "/nowhere"}, "no tokens.json.*lowdimfa data tokens"),
        ({"path": "$NOT_THERE"}, "tokens: path.*NOT_THERE is not set"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "tokens", [[1] * 100])
    with pytest.raises(InputError, match=message):
        tokens(**{"path": str(folder)} | options)


def language_model(vocabulary: int) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Embedding(vocabulary, 16), nn.ReLU()), nn.Linear(16, vocabulary))


def plain_specification(folder: Path, vocabulary: int) -> dict[str, Any]:
    return {
        "model": {"factory": f"{__name__}:language_model", "args": {"vocabulary": vocabulary}, "blocks": 2},
        "data": {
            "factory": "lowdimfa.data:tokens",
            "args": {"path": str(folder), "context": 16, "documents": "mask"},
        },
        "train": {
            "steps": 120,
            "batch_size": 8,
            "microbatches": 2,
            "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.02}},
        },
        "run": {"evaluate_every_epochs": 0, "tensorboard": False},
    }


def test_text_trains_from_files_to_a_loss_below_that_of_single_words(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"{number} to the left, two to the right, " * (30 + number))
    manifest, _ = prepare(Recipe([str(tmp_path)], vocabulary=280), tmp_path / "tokens")
    specification = plain_specification(tmp_path / "tokens", manifest.vocabulary)
    trainer = DecoupledTrainer(specification, engine="local", run_dir=tmp_path / "run")
    counts = np.bincount(np.fromfile(tmp_path / "tokens" / "test.bin", "<u2"))
    shares = counts[counts > 0] / counts.sum()
    assert trainer.fit().metrics["test_loss"] < 0.5 * -(shares * np.log(shares)).sum()


def test_a_model_with_too_few_outputs_is_refused_whatever_tokens_occur(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokens", [[1] * 1000])
    specification = plain_specification(folder, 49)
    with pytest.raises(InputError, match=r"targets 0 to 49 of the data"):
        DecoupledTrainer(specification, engine="local", run_dir=tmp_path / "run").fit()
