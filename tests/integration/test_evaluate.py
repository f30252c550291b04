"""The evaluation of a run's checkpoint by another machine than the run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lossy_engine import SPECIFICATION

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
