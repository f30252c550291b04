"""A damaged checkpoint is refused by name, and the one before it is used when somebody asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import DIGITS, contents, local, refused, settings
from forks import Forks

COURSE = settings(train__epochs=None, train__steps=60, run__checkpoint_every=20, run__keep=3)


@pytest.fixture(scope="module")
def run(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("damaged") / "run"
    assert forks.run(*local(DIGITS, run_dir), *COURSE).code == 0
    return run_dir


def copied(run: Path, folder: Path) -> Path:
    for name, content in contents(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def file_of(run_dir: Path, step: int) -> Path:
    """Return the one file of the second block, whose name says whether another took its place."""
    (file,) = (run_dir / "checkpoints" / f"step-{step:08d}").glob("block-1*.safetensors")
    return file


def test_the_run_goes_on_from_the_good_one_that_the_refusal_names(
    run: Path, forks: Forks, tmp_path: Path
) -> None:
    run_dir = copied(run, tmp_path / "copy")
    os.truncate(file_of(run_dir, 60), 100)
    file_of(run_dir, 40).write_bytes(bytes(file_of(run_dir, 40).stat().st_size))
    before = contents(run_dir)
    outcome = forks.run(*local(DIGITS, run_dir), *COURSE, "--resume")
    refused(outcome, str(file_of(run_dir, 60)), "100 bytes", "step 20 is good", "--resume-step 20")
    outcome = forks.run(*local(DIGITS, run_dir), *COURSE, "--resume-step", 40)
    refused(outcome, str(file_of(run_dir, 40)), "SHA-256", "--resume-step 20")
    assert contents(run_dir) == before

    outcome = forks.run(*local(DIGITS, run_dir), *COURSE, "--resume-step", 20)
    assert outcome.code == 0, outcome
    assert outcome.of("started")[0]["step"] == 20
    for step in (20, 40, 60):
        assert file_of(run_dir, step).read_bytes() == file_of(run, step).read_bytes()


def test_what_came_after_the_chosen_one_is_given_up(run: Path, forks: Forks, tmp_path: Path) -> None:
    run_dir = copied(run, tmp_path / "copy")
    shorter = settings(train__epochs=None, train__steps=30, run__checkpoint_every=0)
    outcome = forks.run(*local(DIGITS, run_dir), *shorter, "--resume", "--resume-step", 20)
    assert outcome.code == 0, outcome
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "step-00000020",
        "step-00000030",
    ]


def test_a_step_without_a_checkpoint_is_refused(run: Path, forks: Forks, tmp_path: Path) -> None:
    before = contents(run)
    refused(forks.run(*local(DIGITS, run), *COURSE, "--resume-step", 41), "step 41", "there: 20, 40, 60")
    refused(
        forks.run(*local(DIGITS, run), *COURSE, "--resume-step", "-1"),
        "--resume-step",
        "greater than or equal to 0",
    )
    refused(forks.run("train", DIGITS, "--resume-step", 20), "--resume-step", "--run-dir")
    refused(forks.run(*local(DIGITS, tmp_path / "new"), "--resume-step", 20), "no run to resume")
    assert contents(run) == before and not (tmp_path / "new").exists()
