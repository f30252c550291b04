"""The curves of a run in MLflow and in W&B's files, read back by MLflow's own API and from the bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browsing, until
from trackers import run, server, train

# The environment that they need is made once, which takes a minute or two.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPECIFICATION: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {"steps": 22, "batch_size": 128, "log_every": 2},  # 11 steps make an epoch
    "run": {"timeline": False, "tensorboard": False, "alignment_every": 11},
}
READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = [found for found in client.search_experiments() if found.name == sys.argv[2]]
(run,) = client.search_runs([experiment.experiment_id])
names = ["train/loss", "test/loss", "test/accuracy", "alignment/block_0_angle_degrees"]
print(json.dumps({
    "experiment": experiment.experiment_id, "id": run.info.run_id, "name": run.info.run_name,
    "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
    "curves": {name: [[each.step, each.value] for each in client.get_metric_history(run.info.run_id, name)]
               for name in names},
    "files": {file.path: open(client.download_artifacts(run.info.run_id, file.path)).read()
              for file in client.list_artifacts(run.info.run_id)},
}))
"""
READ_WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2 as pb
data, at, part, found = open(sys.argv[1], "rb").read(), 7, b"", {"history": [], "config": {}}
assert data[:4] == b":W&B"
while at + 7 <= len(data):
    left = 32768 - at % 32768  # a log of LevelDB: blocks, in them pieces of records with checksum, length and kind
    if left < 7:
        at += left
        continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    if not kind:
        break
    part += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
        record, part = pb.Record.FromString(part), b""
        which = record.WhichOneof("record_type")
        if which == "run":
            found["id"], found["name"] = record.run.run_id, record.run.display_name
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif which == "history":
            found["history"].append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        elif which == "exit":
            found["exit"] = record.exit.exit_code
print(json.dumps(found))
"""


def specification(folder: Path, *callbacks: dict[str, Any], **training: Any) -> Path:
    """Write the specification, with callbacks."""
    changed = SPECIFICATION | {
        "run": SPECIFICATION["run"] | {"callbacks": list(callbacks)},
        "train": SPECIFICATION["train"] | training,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


CURVES = 6
"""Of the run below: loss, accuracy and speed in training, loss and accuracy in evaluations, an angle."""


def metrics_page(address: str) -> str:
    """Return what MLflow's page of a run shows of its curves in a browser, once each has been drawn."""
    with browsing() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 3000})  # it draws what is in sight
        page.goto(address)
        until(
            lambda: page.locator(".js-plotly-plot .scatterlayer .js-line").count() >= CURVES,
            "MLflow draws no curves",
        )
        return str(page.inner_text("body"))


def curve(events: list[dict[str, Any]], kind: str, key: str) -> list[list[float]]:
    return [[event["step"], event[key]] for event in events if event["event"] == kind]


def test_mlflow_has_the_curves_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path) -> None:
    with server(tmp_path) as address:
        arguments = {"experiment": "digits", "tracking_uri": address, "tags": {"team": "a"}}
        spec = specification(tmp_path, {"factory": "lowdimfa:MLflow", "args": arguments})
        events = train(spec, tmp_path / "run")
        first = json.loads(run("-c", READ_MLFLOW, address, "digits"))
        specification(tmp_path, {"factory": "lowdimfa:MLflow", "args": arguments}, steps=44)
        events += train(spec, tmp_path / "run", "--resume")
        found = json.loads(run("-c", READ_MLFLOW, address, "digits"))
        page = f"{address}/#/experiments/{found['experiment']}/runs/{found['id']}/model-metrics"
        shown = metrics_page(page) if shutil.which("chromium") else None
    assert shown is None or all(name in shown for name in found["curves"]), shown
    assert [event for event in events if event["event"] == "warning"] == []
    assert first["id"] == found["id"] and first["status"] == found["status"] == "FINISHED"
    assert (found["name"], found["tags"]["team"]) == ("run", "a")
    assert found["curves"] == {
        "train/loss": curve(events, "progress", "loss"),
        "test/loss": curve(events, "evaluated", "test_loss"),
        "test/accuracy": curve(events, "evaluated", "test_accuracy"),
        "alignment/block_0_angle_degrees": [
            [event["step"], event["blocks"][0]["angle_degrees"]]
            for event in events
            if event["event"] == "alignment"
        ],
    }
    assert [step for step, _ in found["curves"]["test/loss"]] == [11, 22, 33, 44]
    assert found["params"]["model.args.width"] == "8" and found["params"]["train.batch_size"] == "128"
    assert found["files"].keys() == {"spec.yaml", "index.html", "result.json"}
    assert json.loads(found["files"]["result.json"]) | {"time": 0} == events[-1] | {"time": 0}
    assert yaml.safe_load(found["files"]["spec.yaml"])["train"]["steps"] == 44
    assert "Finished." in found["files"]["index.html"]


def test_files_of_wandb_and_a_folder_of_mlflow_have_the_curves(tmp_path: Path) -> None:
    folder = {"factory": "lowdimfa:MLflow", "args": {"tracking_uri": "tracked"}}
    spec = specification(tmp_path, {"factory": "lowdimfa:WandB", "args": {"mode": "offline"}}, folder)
    events = train(spec, tmp_path / "run")
    specification(tmp_path, {"factory": "lowdimfa:WandB", "args": {"mode": "offline"}}, folder, steps=44)
    events += train(spec, tmp_path / "run", "--resume")
    assert [event for event in events if event["event"] == "warning"] == []

    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    parts = [json.loads(run("-c", READ_WANDB, file)) for file in files]
    assert len(parts) == 2 and {(part["id"], part["name"], part["exit"]) for part in parts} == {
        (json.loads((tmp_path / "run" / "wandb.json").read_text())["id"], "run", 0)
    }
    history = [line for part in parts for line in part["history"]]
    for name, kind, key in (
        ("train/loss", "progress", "loss"),
        ("test/accuracy", "evaluated", "test_accuracy"),
    ):
        assert [[line["step"], line[name]] for line in history if name in line] == curve(events, kind, key)
    assert parts[0]["config"]["model"]["args"]["width"] == 8
    for file in files:
        kept = {path.name for path in (file.parent / "files").iterdir()}
        assert {"spec.yaml", "index.html", "result.json"} <= kept

    store = f"sqlite:///{tmp_path / 'tracked' / 'mlflow.db'}"
    found = json.loads(run("-c", READ_MLFLOW, store, "lowdimfa"))
    assert found["curves"]["train/loss"] == curve(events, "progress", "loss")
    assert found["files"].keys() == {"spec.yaml", "index.html", "result.json"}
