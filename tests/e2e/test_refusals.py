"""What can't be run is refused at once: exit code 2, one message, nothing started and nothing touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import DIGITS, contents, refused, settings
from forks import Forks
from rpc_helpers import RAY_HANGS, eventually

USER_MODULE = """
import torch
from torch import nn

def misfit():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(16, 10))

def failing():
    raise RuntimeError("no luck today")

def vectors():
    return torch.zeros(100, 64), torch.zeros(100, 3), torch.zeros(20, 64), torch.zeros(20, 3)

def empty():
    return torch.zeros(0, 64), torch.zeros(0), torch.zeros(20, 64), torch.zeros(20)

def constant_loss(outputs, targets):
    return torch.zeros(())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "user.py").write_text(USER_MODULE)
    (folder / "spec.yaml").write_text(DIGITS.read_text())
    (folder / "broken.yaml").write_text("model: [unclosed\ntrain: }")
    (folder / "file").write_text("a file, not a directory")
    (folder / "empty").mkdir()
    return folder


CASES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown key": (settings(train__batchsize=3), ("train.batchsize", "'batch_size'")),
    "wrong type": (settings(train__batch_size="many"), ("train.batch_size", "many", "integer")),
    "error dimension": (settings(feedback__error_dim=11), ("feedback.error_dim", "11", "10")),
    "too many blocks": (settings(model__blocks=9), ("model.blocks", "9", "from 1 to 4")),
    "unknown layer": (settings(model__blocks=["first"]), ("model.blocks", "'first'")),
    "no such module": (settings(model__factory="nowhere:make"), ("model.factory", "nowhere:make")),
    "no such function": (settings(model__factory="user:make"), ("model.factory", "user:make")),
    "bad arguments": (settings(model__args__depht=3), ("model.args.depht", "Did you mean 'depth'?")),
    "a factory that fails": (
        settings(data__factory="user:failing"),
        ("data.factory", "user:failing", "no luck today"),
    ),
    "missing data": (
        settings(data__factory="lowdimfa.data:mnist"),
        ("train-images-idx3-ubyte", "data fetch mnist"),
    ),
    "no samples": (settings(data__factory="user:empty"), ("data.factory", "train", "sample")),
    "layers that don't fit": (
        settings(model__factory="user:misfit", model__args={}, model__blocks=2),
        ("model.factory", "layer '2'", "(4, 32)"),
    ),
    "input that doesn't fit": (settings(model__args__in_features=63), ("model.factory", "64", "63")),
    "targets that don't fit": (settings(data__factory="user:vectors"), ("train.loss", "(2, 10)", "(2, 3)")),
    "too few classes": (settings(model__args__classes=7), ("model.args", "7", "9")),
    "a loss of nothing": (settings(train__loss="user:constant_loss"), ("train.loss", "outputs")),
    "an unknown loss": (settings(train__loss="hinge"), ("train.loss", "hinge", "cross_entropy")),
    "batch too large": (settings(train__batch_size=4000), ("train.batch_size", "4000", "1500")),
    "micro-batches": (settings(train__microbatches=3), ("train.microbatches", "3", "50")),
    "optimiser's arguments": (
        settings(train__optimizer__args={"rate": 1}),
        ("train.optimizer.args", "rate"),
    ),
    "scheduler's arguments": (
        settings(train__scheduler={"factory": "torch.optim.lr_scheduler.StepLR"}),
        ("train.scheduler", "step_size"),
    ),
    "a block that isn't there": (settings(train__per_block__9__grad_clip=1.0), ("train.per_block.9",)),
    "a setting without value": (["--set", "train.epochs"], ("--set train.epochs",)),
    "no storage": (settings(run__storage="file/runs"), ("file", "run.storage")),
    "no run to resume": (["--resume", "--run-dir", "new"], ("new", "no run to resume")),
    "resume what": (["--resume"], ("--resume", "--run-dir")),
    "unknown option": (["--epochs", "3"], ("--epochs", "lowdimfa train --help")),
    "unknown engine": (["--engine", "mpi"], ("--engine", "mpi")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_run_is_refused_before_anything_starts(
    name: str, folder: Path, forks: Forks, tmp_path: Path
) -> None:
    arguments, words = CASES[name]
    before = contents(folder)
    outcome = forks.run(
        "train",
        "spec.yaml",
        "--format",
        "json",
        *arguments,
        cwd=folder,
        LOWDIMFA_DATA=str(folder / "empty"),
        RAY_TMPDIR=str(tmp_path),
    )
    refused(outcome, *words)
    if not name.startswith("unknown option") and name != "unknown engine":
        assert [event["event"] for event in outcome.events] == ["failed"]
        assert outcome.events[0]["message"] in outcome.stderr
        assert (outcome.events[0]["code"], outcome.events[0]["exit_code"]) == ("bad_input", 2)
    assert contents(folder) == before
    # A Ray that had begun to start ends by itself, but for its folder for all sessions; nobody waits for it.
    eventually(lambda: not [*tmp_path.glob("*/*")], RAY_HANGS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "missing.yaml"), ("missing.yaml", "no such file")),
        (("train", "broken.yaml"), ("broken.yaml, line 2",)),
        (("train", "file"), ("file", "a mapping with keys model, data and train")),
        (("evaluate", "empty"), ("empty", "a run")),
        (("evaluate", "nowhere"), ("nowhere", "a run")),
        (("export", "empty", "--output", "out.safetensors"), ("empty", "a run")),
        (("report", "empty"), ("empty", "run")),
        (("trian",), ("trian", "train")),
        ((), ("lowdimfa --help",)),
        (("export", "empty"), ("--output",)),
        (("data",), ("lowdimfa data --help",)),
    ],
)
def test_other_refusals(
    arguments: tuple[str, ...], words: tuple[str, ...], folder: Path, forks: Forks
) -> None:
    before = contents(folder)
    refused(forks.run(*arguments, cwd=folder), *words)
    assert contents(folder) == before


def test_what_is_there_is_kept(folder: Path, forks: Forks, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    common = ("train", DIGITS, "--engine", "local", "--run-dir", run_dir, *settings(train__epochs=1))
    assert forks.run(*common).code == 0
    before = contents(run_dir)
    refused(forks.run(*common), str(run_dir), "--resume")
    refused(forks.run("train", DIGITS, "--run-dir", run_dir), str(run_dir), "--resume")
    refused(forks.run("export", run_dir, "--output", folder / "file" / "out.safetensors"), "out.safetensors")
    assert contents(run_dir) == before
    for file in run_dir.glob("checkpoints/*/block-1-*.safetensors"):
        file.write_bytes(b"damaged")
    for command in (
        ("evaluate", run_dir),
        ("export", run_dir, "--output", tmp_path / "out.safetensors"),
        (*common, "--resume"),
    ):
        refused(forks.run(*command), "block-1-", "bytes")
    assert not (tmp_path / "out.safetensors").exists()
