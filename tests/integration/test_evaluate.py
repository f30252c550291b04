"""The evaluation of a run's checkpoint by another machine than the run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lossy_engine import SPECIFICATION
from typer.testing import CliRunner

from lowdimfa.services.cli.app import app
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.evaluate import evaluate_run


def test_a_machine_without_gpus_evaluates_what_was_trained_on_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result = DecoupledTrainer(SPECIFICATION, engine="local", run_dir=tmp_path / "run").fit()
    assert evaluate_run(tmp_path / "run")["test_loss"] == result.metrics["test_loss"]
    assert caplog.text == ""
    kept = tmp_path / "run" / "spec.yaml"
    given = yaml.safe_load(kept.read_text())
    given["placement"]["gpus_per_block"] = 1.0
    kept.write_text(yaml.safe_dump(given))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert evaluate_run(tmp_path / "run")["test_loss"] == pytest.approx(result.metrics["test_loss"])
    assert "the processor evaluates" in caplog.text


@pytest.mark.parametrize(("fraction", "split"), [(0.25, "validation"), (0.0, "test")])
def test_training_says_which_split_it_evaluates(fraction: float, split: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPECIFICATION))
    options = ["--engine", "local", "--set", f"data.validation={fraction}", "--set", "train.steps=1"]
    result = CliRunner().invoke(app, ["train", str(spec), "--run-dir", str(tmp_path / "run"), *options])
    assert f"\n{split} at step 1: loss " in result.output, result.output
    assert f"\nfinished: {split} accuracy " in result.output
