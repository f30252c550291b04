"""`lowdimfa plan --tune` on a real Ray: what it measures, writes, refuses and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowdimfa.errors import InputError, ResourceError
from lowdimfa.services.cli.app import app, run
from lowdimfa.services.cli.tune import _changed, _names, _write, tuned_text
from lowdimfa.services.lab.tuning.search import Search, Tried, Verdict
from lowdimfa.services.lab.tuning.space import ALLOWED
from lowdimfa.services.lab.tuning.tune import Tuned
from lowdimfa.services.spec import load_specification
from lowdimfa.services.spec.load import parse_specification, parse_text
from lowdimfa.services.trainer.api import DecoupledTrainer

TEXT = """# Handwritten digits.
model:
  factory: lowdimfa.models:mlp
  args: {in_features: 64, width: 16, depth: 3, classes: 10}
  blocks: 2
data:
  factory: lowdimfa.data:digits
train:
  steps: 20000
  batch_size: 48
  microbatches: 8  # more than are of use
run:
  checkpoint_every: 1
drill:
  faults: [{kind: crash, block: 0, step: 2}]
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "digits.yaml"
    path.write_text(TEXT)
    (tmp_path / "other").mkdir()
    (tmp_path / "own.py").write_text("from lowdimfa.data import digits\n")
    return path


def tuned(spec: Path, *options: str) -> Any:
    arguments = ["plan", str(spec), "--tune", *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("cluster")
def test_segments_are_measured_and_what_was_fastest_is_written(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is the fastest is for the machine to say, and is said here in its place."""
    asked: list[list[Tried]] = []

    def first(search: Search, candidates: list[Tried], until: float) -> Tried:
        asked.append(candidates)
        return candidates[0]

    monkeypatch.setattr(Search, "best_of", first)
    monkeypatch.setattr(Search, "affordable", lambda search, until: 3)
    monkeypatch.setattr(Search, "duel", lambda search, leader: Verdict((2.0, 2.1, 2.2)))
    found = json.loads(tuned(spec, "--minutes", "0.5", "--set", "train.seed=3", "--format", "json").stdout)
    default, other = [row for row in found["settings"] if row["segments"]]
    assert {} in (default["changes"], other["changes"]) and other["failure"] is None
    for row in (default, other):
        assert row["samples_per_second"] > 0 and 0 < row["busy"] <= 1 and row["predicted"] > 0
        assert row["peak_bytes"] > 50e6
    combinations, variations = asked
    assert 0 < len(combinations) <= 3 and found["untried"] > 0
    # What led so far, and as many others as can be afforded; how many there are depends on which that is.
    assert 0 < len(variations) - 1 <= 3 and variations[0] is combinations[0]
    assert found["chosen"] == variations[0].changes and found["ratio"] > 2
    written = Path(found["written"])
    assert written == spec.with_name("digits.tuned.yaml")
    assert load_specification(written) == load_specification(spec, {"train.seed": 3, **found["chosen"]})
    assert written.read_text().startswith("# Handwritten digits.")
    assert {path.name for path in spec.parent.iterdir()} == {
        "digits.tuned.yaml",
        "digits.yaml",
        "other",
        "own.py",
    }
    result = DecoupledTrainer(
        written, engine="local", overrides={"train.steps": 2, "drill.faults": []}, run_dir=spec.parent / "run"
    ).fit()
    assert result.metrics["steps"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "model.blocks=1"), "model.blocks: found 1 with --tune"),
        (("--set", "feedback.form=local"), "feedback.form"),
        (("--set", "train.steps=3"), "train.steps: found 3 with --tune"),
        (("--set", "run.storage=memory://runs"), "run.storage: found an address"),
        (("--allow", "stale"), "Did you mean 'staleness'"),
        (("--keep", "staleness"), "--keep: found 'staleness'"),
        (("--output", "digits.yaml"), "already there"),
        (("--output", "nowhere/new.yaml"), "a folder that isn't there"),
        (
            ("--set", "data.factory=own:digits", "--output", "other/new.yaml"),
            "uses of its own (own); expected a file in",
        ),
        (("--output", "n" * 300), "can't be written (file name too long)"),
        (("--minutes", "inf"), "--minutes: found inf"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    spec: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        tuned(spec, *options)
    assert words in refused.value.message and refused.value.exit_code == 2
    left = [path for path in spec.parent.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(path.name for path in left) == ["digits.yaml", "other", "own.py"]


@pytest.mark.parametrize("given", ["latin.yaml", ".", "missing.yaml"])
def test_a_specification_that_cannot_be_read_is_refused(given: str, spec: Path) -> None:
    (spec.parent / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(InputError, match=r"found a file that (can't be read|is not UTF-8)"):
        tuned(Path(given))


@pytest.mark.parametrize(
    "changes", [{}, {"train.staleness": 2}, {"train.staleness": 2, "train.microbatches": 8}]
)
def test_what_is_written_is_what_was_measured_also_where_a_number_is_left_to_the_program(
    changes: dict[str, Any], spec: Path
) -> None:
    text = TEXT.replace("microbatches: 8", "microbatches: auto")
    default = parse_text(text, "", ["train.seed=3"])
    found = _changed(text, spec, ["train.seed=3"], changes, default)
    assert parse_text(found, "") == parse_specification(default.model_dump(), "", changes)
    assert ("microbatches: auto  # more" in found) == (not changes)


def test_a_text_that_is_no_longer_what_was_read_is_refused(spec: Path) -> None:
    with pytest.raises(InputError, match="a text that changes"):
        _changed(TEXT, spec, [], {}, parse_text(TEXT, "", ["train.seed=3"]))


def test_only_what_can_be_allowed_is_said_to_be(spec: Path) -> None:
    left_out = dict.fromkeys(("cut", "microbatches", "replicas", "window"), "it is so")
    found = Tuned([Tried({})], Tried({}), Verdict(()), 0, False).describe()
    text = tuned_text(found | {"left_out": left_out, "written": None}, spec)
    assert "cut left as it is: it is so\n" in text
    for name in ("microbatches", "replicas", "window"):
        assert f"{name} left as it is: it is so; --allow {name} tries it" in text
        assert _names("--allow", name, ALLOWED) == {name}


def test_what_cannot_be_written_after_the_search_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"what was faster: --set train.window=2 --set 'model.blocks="):
        _write(tmp_path, "", {"train.window": 2, "model.blocks": ["1"]})


def test_an_interrupted_command_says_that_it_was_stopped(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowdimfa.services.cli.tune.tune_command", interrupted)
    monkeypatch.setattr("sys.argv", ["lowdimfa", "plan", str(spec), "--tune"])
    assert run() == 130
    assert capsys.readouterr().err == "lowdimfa: stopped\n"


def test_its_options_are_refused_without_it(spec: Path) -> None:
    with pytest.raises(InputError, match="--minutes: found a plan without --tune"):
        CliRunner().invoke(app, ["plan", str(spec), "--minutes", "1"], catch_exceptions=False)
