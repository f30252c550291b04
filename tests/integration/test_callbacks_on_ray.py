"""Callbacks in a trainer actor: those of a specification, copies of objects, and the end that one of them wants."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from specifications import SMALL

from lowdimfa.callback import Callback
from lowdimfa.errors import InputError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.results import Result

OWN = """
import json, os
from lowdimfa import Callback

class Writing(Callback):
    def __init__(self, file, stop_at=0):
        self.file, self.stop_at, self.calls = file, stop_at, []

    def evaluated(self, event, run):
        if event["step"] == self.stop_at:
            run.stop("far enough")

    def _note(self, event, run):
        self.calls.append([event["event"], run.step, os.getpid()])
        with open(self.file, "w") as file:
            json.dump(self.calls, file)

    started = checkpoint = finished = _note
"""
SPECIFICATION: dict[str, Any] = {
    "model": SMALL["model"],
    "data": SMALL["data"],
    "train": {
        "epochs": 6,
        "batch_size": 100,
        "average": {"decay": 0.9},
        "metrics": {
            "f1": {
                "factory": "torchmetrics.classification:MulticlassF1Score",
                "args": {"num_classes": 10, "average": None},
            }
        },
    },
}


def fit(folder: Path, engine: Any, *callbacks: Callback) -> Result:
    """Stop after the third evaluation, by the callback of the specification."""
    section = {"factory": "own_callbacks:Writing", "args": {"file": str(folder / engine), "stop_at": 45}}
    (folder / "own_callbacks.py").write_text(OWN)
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION | {"run": {"callbacks": [section]}}))
    options: dict[str, Any] = {"engine": engine, "run_dir": folder / f"run-{engine}", "callbacks": callbacks}
    return DecoupledTrainer(folder / "spec.yaml", **options).fit()


@pytest.mark.usefixtures("cluster")
def test_on_ray_they_do_in_the_trainer_what_they_do_in_process(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}  # as in a notebook's cell: it can't be imported
    exec(OWN, space)
    given = space["Writing"](str(tmp_path / "given"))
    local, ray = fit(tmp_path, "local"), fit(tmp_path, "ray", given)
    assert given.calls == []  # it was a copy that was called
    assert ray.metrics["stopped_early"] == local.metrics["stopped_early"] == "far enough"
    assert ray.metrics["steps"] == local.metrics["steps"] == 45
    assert ray.metrics["metrics"] == local.metrics["metrics"] and len(ray.metrics["metrics"]["f1"]) == 10
    assert ray.metrics["test_loss"] == local.metrics["test_loss"]
    ours, theirs = (
        export_state(CheckpointStore(result.path).load(None), average=True) for result in (ray, local)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    log = [json.loads(line) for line in (ray.path / "events.jsonl").open()]
    assert [event for event in log if event["event"] == "warning"] == []
    calls = [json.loads((tmp_path / name).read_text()) for name in ("ray", "given")]
    trainer = log[0]["pids"]["trainer"]
    assert calls[0] == calls[1] == [[kind, step, trainer] for kind, step in EXPECTED]
    assert [call[:2] for call in json.loads((tmp_path / "local").read_text())] == [
        [*each] for each in EXPECTED
    ]


EXPECTED = [("started", 0), ("checkpoint", 45), ("finished", 45)]


@pytest.mark.usefixtures("cluster")
def test_one_that_can_not_travel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_callbacks", raising=False)  # that of another folder

    class Holding(Callback):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(InputError, match=r"callbacks\[0\].*Holding that can't be copied"):
        fit(tmp_path, "ray", Holding())
