"""Every example passes a dry run, and those whose data come with the package train."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import EXAMPLES, SECONDS, environment, lowdimfa, settings
from forks import Forks

from lowdimfa.data.sources import SOURCES, data_folder, missing_files
from lowdimfa.paths import expand

SPECIFICATIONS = sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*/spec.yaml")])


def name(spec: Path) -> str:
    return str(spec.relative_to(EXAMPLES))


def require_data(spec: Path) -> None:
    """Skip an example whose data have not been fetched."""
    data = yaml.safe_load(spec.read_text())["data"]
    factory = data["factory"].rpartition(":")[2]
    if factory == "tokens" and not expand(data["args"]["path"]).exists():
        pytest.skip("the token files aren't there: the example says how to make them")
    source = SOURCES.get(factory)
    if source is not None and missing_files(source, data_folder(source, None)):
        pytest.skip(f"the files of {factory} aren't there: lowdimfa data fetch {factory}")


@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=name)
def test_the_plan_is_readable(spec: Path, forks: Forks) -> None:
    require_data(spec)
    outcome = forks.run("train", spec, "--dry-run")
    assert (outcome.code, outcome.stderr) == (0, "")
    header, *lines = outcome.stdout.splitlines()
    assert header.split() == ["block", "layers", "parameters", "input", "output", "cost", "tap", "feedback"]
    assert max(map(len, (header, *lines))) < 110
    assert any(" steps per epoch" in line for line in lines)


@pytest.mark.parametrize(
    "spec",
    [EXAMPLES / "custom" / "spec.yaml", EXAMPLES / "digits_mlp.yaml", EXAMPLES / "teacher_mlp.yaml"],
    ids=name,
)
def test_it_trains(spec: Path, forks: Forks, tmp_path: Path) -> None:
    few = settings(train__epochs=None, train__steps=40)
    common = ("--engine", "local", "--format", "json", "--run-dir", tmp_path / "run")
    outcome = forks.run("train", spec, *common, *few)
    assert (outcome.code, outcome.stderr) == (0, "")
    losses = [event["loss"] for event in outcome.of("progress")]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_network_of_hugging_face_trains_is_exported_and_writes_on(forks: Forks, tmp_path: Path) -> None:
    """As the example's file says, with a text and a network that are smaller."""
    pytest.importorskip("transformers")
    words = "To be, or not to be"
    (tmp_path / "text.txt").write_text("".join(f"{words}, says {name}.\n" for name in range(3_000)))
    tokens = "data", "tokens", tmp_path / "text.txt", "--vocabulary", 300, "--out", tmp_path / "tokens"
    assert forks.run(*tokens).code == 0
    small = settings(
        model__args__config__n_embd=32,
        model__args__config__vocab_size=300,
        data__args__path=str(tmp_path / "tokens"),
        train__steps=60,
        train__scheduler__args__total_steps=60,
        run__checkpoint_every=30,
    )
    example, run = EXAMPLES / "gpt_shakespeare.yaml", tmp_path / "run"
    trained = lowdimfa("train", example, "--run-dir", run, "--format", "json", *small)
    assert trained.code == 0, trained
    (finished,) = trained.of("finished")
    assert finished["test_loss"] < trained.of("progress")[0]["loss"]
    exported = forks.run("export", run, "--format", "hugging-face", "--output", tmp_path / "gpt")
    assert exported.code == 0, exported
    assert "tokenizer.json" in exported.stdout
    command = [sys.executable, EXAMPLES / "generate.py", tmp_path / "gpt", words]
    written = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path
    )
    assert written.returncode == 0, written
    assert written.stdout.startswith(words)
    # New weights would draw all kinds of bytes.
    drawn = re.findall("[a-z]+", written.stdout.removeprefix(words).lower())
    known = [word for word in drawn if word in {"to", "be", "or", "not", "says"}]
    assert len(known) > max(8, 0.8 * len(drawn))
