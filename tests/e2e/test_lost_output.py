"""The command where its output goes nowhere, and where paths and files are as people have them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command import COMMAND, DIGITS, SECONDS, environment, refused
from forks import Forks

MODEL = """
from torch import nn

class Talking(nn.Module):
    def forward(self, inputs):
        print("größe °", len(inputs))
        return inputs

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Talking(), nn.Linear(16, 10))
"""
SETTINGS = ("model.factory=talking:make_model", "model.args={}", "model.blocks=2", "run.alignment_every=5")
SHORT = ("train.epochs=null", "train.steps=20", "train.log_every=1", "run.metrics=off")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_run_whose_output_nobody_reads_any_more_trains_to_its_end(form: str, tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text(MODEL, "utf-8")
    (tmp_path / "spec.yaml").write_bytes(DIGITS.read_bytes())
    arguments = ["train", tmp_path / "spec.yaml", "--engine", "local", "--format", form]
    arguments += [part for setting in (*SETTINGS, *SHORT) for part in ("--set", setting)]
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments), "--run-dir", "$PLACE/run"],
        env=environment(PYTHONIOENCODING="ascii", PLACE=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(SECONDS) == 0, said
    assert said.count("lowdimfa: part of the output is lost, since nobody reads it any more") == 1
    assert "Traceback" not in said
    if form == "json":  # else it goes to standard output
        assert "gr??e ? " in said
    *_, last = map(json.loads, (tmp_path / "run" / "events.jsonl").open())
    assert last["event"] == "finished" and last["steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "shell", "code", "said"),
    [
        ("data list", "| true", 141, ""),
        (
            "simulate",
            ">/dev/full",
            5,
            "lowdimfa: standard output can't be written: No space left on device\n",
        ),
    ],
)
def test_a_command_that_shows_something_ends_without_a_traceback(
    arguments: str, shell: str, code: int, said: str
) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{COMMAND} {arguments} {shell}"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_a_submission_beside_all_kinds_of_files_says_what_it_would_send(forks: Forks, tmp_path: Path) -> None:
    spec = tmp_path / "my spec v1.2.yaml"
    spec.write_bytes(DIGITS.read_bytes())
    (tmp_path / "talking.py").write_text(MODEL, "utf-8")
    (tmp_path / "latin.py").write_bytes("x = 'größe'".encode("latin-1"))
    (tmp_path / "train (1).py").touch()
    (tmp_path / ".#talking.py").symlink_to("somebody@machine.1")
    (tmp_path / "d.py").mkdir()
    outcome = forks.run("submit", spec, "--dry-run", "--format", "json")
    assert (outcome.code, outcome.stderr) == (0, "")
    found = json.loads(outcome.stdout)
    assert (found["name"], found["files"]) == ("my-spec-v1-2", ["talking.py"])
    assert set(found["left_out"]) == {"latin.py", "train (1).py", ".#talking.py", "d.py"}
    shown = forks.run("submit", spec, "--dry-run")
    assert "left out d.py: a folder" in shown.stdout and shown.code == 0


def test_a_variable_that_is_not_set_is_refused_by_name(forks: Forks) -> None:
    local = ("train", DIGITS, "--engine", "local", "--dry-run")
    refused(forks.run(*local, "--run-dir", "$NO_PLACE/run"), "--run-dir", "$NO_PLACE is not set")
    refused(forks.run(*local, "--set", "run.storage=${NO_PLACE}"), "run.storage", "${NO_PLACE} is not set")
