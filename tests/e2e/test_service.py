from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from command import DIGITS, EXAMPLES, refused, settings
from service import Service

LONG = {"train__epochs": 2000, "model__blocks": 2, "run__evaluate_every_epochs": 0}
"""A job that is under way for as long as a test needs it."""


def test_a_job_is_submitted_watched_and_found_again(served: Service) -> None:
    short = settings(model__blocks=2, train__epochs=2)
    outcome = served.run("submit", DIGITS, "--watch", *short)
    assert outcome.code == 0, outcome
    assert "submitted digits_mlp-" in outcome.stdout and "finished: test accuracy" in outcome.stdout
    job = json.loads(served.run("jobs", "--state", "finished", "--format", "json").stdout.splitlines()[0])
    assert (job["state"], job["step"], job["steps"]) == ("finished", 60, 60)
    shown = served.run("status", job["id"][:-2])  # a beginning is enough
    assert job["id"] in shown.stdout and "60 of 60" in shown.stdout
    assert job["id"] in served.run("jobs").stdout
    assert (Path(job["run_dir"]) / "result.json").exists()


def test_a_model_in_the_user_s_own_file_trains_on_the_cluster_and_its_prints_are_in_the_logs(
    served: Service, tmp_path: Path
) -> None:
    project = (EXAMPLES / "custom" / "my_project.py").read_text()
    (tmp_path / "my_project.py").write_text(project + '\nprint("hello from my own file", flush=True)\n')
    (tmp_path / "spec.yaml").write_text((EXAMPLES / "custom" / "spec.yaml").read_text())
    few = ("--watch", "--format", "json", *settings(train__epochs=1))
    outcome = served.run("submit", tmp_path / "spec.yaml", "--name", "mine", *few)
    assert outcome.code == 0, outcome
    assert "sent my_project.py" in outcome.stderr
    job = json.loads(served.run("jobs", "--format", "json", "--limit", "1").stdout)
    logs = served.run("logs", job["id"], "--source", "block-0")
    assert "block-0 hello from my own file" in logs.stdout


def test_a_job_is_submitted_once_for_a_key_and_followed_from_where_somebody_was(
    served: Service, tmp_path: Path
) -> None:
    project = (EXAMPLES / "custom" / "my_project.py").read_text()
    (tmp_path / "my_project.py").write_text(project + "\nprint('first')\nprint('last', flush=True)\n")
    (tmp_path / "spec.yaml").write_text((EXAMPLES / "custom" / "spec.yaml").read_text())
    words = ("submit", tmp_path / "spec.yaml", "--idempotency-key", "only-once", *settings(train__epochs=1))
    first, again = served.json(*words), served.json(*words)
    job = first["job"]["id"]
    assert (first["created"], again["created"], again["job"]["id"]) == (True, False, job)
    with served.watching(job) as watch:
        whole = watch.end()
    assert whole.code == 0, whole
    from_there = served.run("watch", job, "--after", whole.events[-3]["sequence"], "--format", "json")
    assert (from_there.code, from_there.events) == (0, whole.events[-2:])
    lines = served.run("logs", job, "--tail", "1", "-f", "--source", "block-0", "--format", "json")
    assert lines.code == 0 and [line["text"] for line in map(json.loads, lines.stdout.splitlines())] == [
        "last"
    ]
    assert job in served.run("jobs", "--owner", first["job"]["owner"]).stdout
    assert served.run("jobs", "--owner", "nobody").stdout == "no jobs\n"


def test_a_bad_specification_names_the_user_s_file_and_reaches_no_service(
    served: Service, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(DIGITS.read_text().replace("epochs:", "epoch:"))
    refused(served.run("submit", bad), str(bad), "train.epoch", "Did you mean")
    lr = served.run("submit", DIGITS, "--set", "train.optimizer.args.lr=fast")
    refused(lr, "--set train.optimizer.args.lr: found the string 'fast'; expected a number")
    refused(served.run("status", "nobody"), "'nobody'", "no such job")


def test_data_that_can_not_be_had_fails_the_job_with_the_command_s_exit_code(served: Service) -> None:
    outcome = served.run("submit", DIGITS, "--watch", "--set", "data.factory=nowhere:data")
    assert outcome.code == 2, outcome
    assert "data.factory" in outcome.stderr and "Traceback" not in outcome.stderr


HELD = """
import time
from pathlib import Path
from torch import nn

class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        while self.calls > 100 and Path({gate!r}).exists():
            time.sleep(0.01)
        return inputs

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Held(), nn.Linear(16, 10))
"""


def test_a_job_is_stopped_with_a_checkpoint_and_goes_on(served: Service, tmp_path: Path) -> None:
    """However long the commands take: a file holds the job in a step until it has been told to stop."""
    gate = tmp_path / "gate"
    gate.touch()
    (tmp_path / "held.py").write_text(HELD.format(gate=str(gate)))
    (tmp_path / "spec.yaml").write_bytes(DIGITS.read_bytes())
    values = {"train__epochs": 30, "run__evaluate_every_epochs": 0}
    model = {"model__factory": "held:make_model", "model__args": {}, "model__blocks": 2}
    job = served.submit(tmp_path / "spec.yaml", **values, **model)
    with served.watching(job) as watch:
        watch.until("progress")
        assert served.json("stop", job)["state"] == "stopping"
        gate.unlink()
        ended = watch.end()
    assert ended.code == 130 and f"lowdimfa resume {job}" in ended.stderr
    saved = ended.of("checkpoint")[0]["step"]
    status = served.json("status", job)
    assert status["state"] == "stopped" and 0 < saved < 900
    resumed = served.run("resume", job, "--watch", "--format", "json")
    assert resumed.code == 0, resumed
    started = next(event for event in resumed.events if event["event"] == "started")
    assert started["step"] == saved
    assert served.json("status", job)["attempt"] == 2


def test_a_coordinator_that_is_killed_and_comes_back_loses_no_event_and_no_job(served: Service) -> None:
    job = served.submit(train__epochs=10, model__blocks=2, run__evaluate_every_epochs=0)
    with served.watching(job) as watch:
        events = watch.until("progress")
        served.kill()
        served.start()
        ended = watch.end()
    assert ended.code == 0, ended.stderr
    events += ended.events
    sequences = [event["sequence"] for event in events]
    assert sequences == list(range(1, len(sequences) + 1))
    steps = [event["step"] for event in events if event["event"] == "progress"]
    assert steps == list(range(10, 301, 10))  # every report of the run, once
    states = [event["state"] for event in events if event["event"] == "state"]
    # It may say more than once that it is queued: what it waits for is in the detail.
    assert [state for state, _ in groupby(states)] == ["queued", "starting", "running", "finished"]
    assert served.json("status", job)["attempt"] == 1


def test_a_stop_at_once_frees_the_cluster_for_the_next(served: Service) -> None:
    job = served.submit(**LONG)
    with served.watching(job) as watch:
        watch.until("progress")
        served.json("stop", job, "--now")
        assert watch.end().code == 130
    assert not (served.storage / "targets" / f"{job}.json").exists()
    after = served.run("submit", DIGITS, "--watch", *settings(model__blocks=4, train__epochs=1))
    assert after.code == 0, after
