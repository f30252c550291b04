"""Every example passes a dry run, and those whose data come with the package train."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command import EXAMPLES, settings
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
