"""A run on Ray that is stopped in the middle: in order, or with its trainer killed; and what its processes printed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from specifications import specification

from lowdimfa.errors import LowdimfaError, StoppedError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer.actor import TrainerActor
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.request import RunRequest

TALKATIVE = '''
import logging
import os

import torch
from torch import nn


class Talkative(nn.Module):
    """Prints in every way there is, and fails when a file asks for it."""

    def __init__(self, number):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.number = number
        self.said = False

    def forward(self, inputs):
        if not self.said and not inputs.is_meta:
            self.said = True
            print("layer", self.number, "prints")
            logging.getLogger("user").warning("layer %s logs", self.number)
            os.write(2, b"native code writes\\n")
        if self.number == 1 and len(inputs) > 16 and os.path.exists({trap!r}):
            raise RuntimeError("the user's own mistake")
        return torch.relu(self.linear(inputs))


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Talkative(0), Talkative(1), nn.Linear(16, 10))
'''


pytestmark = pytest.mark.usefixtures("cluster")


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").open()]


def fit(
    plain: dict[str, Any],
    run_dir: Path,
    act: Callable[[DecoupledTrainer, dict[str, Any]], None] = lambda trainer, event: None,
    **options: Any,
) -> None:
    trainer = DecoupledTrainer(plain, run_dir=run_dir, on_event=lambda event: act(trainer, event), **options)
    trainer.fit()


@pytest.mark.parametrize(
    ("blocks", "staleness"), [(3, 0), (1, 0), pytest.param(3, 2, marks=pytest.mark.slow)]
)
def test_stopped_in_a_segment_and_resumed(blocks: int, staleness: int, tmp_path: Path) -> None:
    """The only segment is the whole run, which is too long to end before a stop comes, however late that is."""

    def stop(trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] >= 20:
            trainer.stop()

    plain = specification(
        "mlp",
        blocks,
        "probed",
        train={"steps": 100_000, "scheduler": None, "staleness": staleness, "microbatches": 4},
    )
    with pytest.raises(StoppedError, match="go on from step") as caught:
        fit(plain, tmp_path / "parts", stop)
    step = caught.value.step
    assert step is not None and 20 <= step < 100_000
    assert [(event["event"], event["step"]) for event in events_of(tmp_path / "parts")[-2:]] == [
        ("checkpoint", step),
        ("failed", step),
    ]
    assert not (tmp_path / "targets" / "parts.json").exists()
    if staleness == 0:  # with more, the bits depend on timing
        plain["train"]["steps"] = step + 3
        fit(plain, tmp_path / "parts", resume=True, engine="local")
        assert events_of(tmp_path / "parts")[-1]["steps"] == step + 3
        fit(plain, tmp_path / "whole", engine="local")
        found, expected = exported(tmp_path / "parts"), exported(tmp_path / "whole")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def request(
    plain: dict[str, Any], run_dir: Path, resume: bool = False, code: UserCode | None = None
) -> RunRequest:
    return RunRequest(
        parse_specification(plain, "test").model_dump(), str(run_dir), "ray", resume, code or UserCode()
    )


def until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    """Return what a condition gives once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_a_job_runs_once_is_asked_to_stop_and_keeps_what_it_printed(tmp_path: Path) -> None:
    run_dir, trap = tmp_path / "job", tmp_path / "trap"
    code = run_dir / "code"
    code.mkdir(parents=True)
    (code / "talkative_model.py").write_text(TALKATIVE.replace("{trap!r}", repr(str(trap))))
    plain = specification("mlp", 2, train={"steps": 100_000, "scheduler": None})
    plain["model"] = {"factory": "talkative_model:make_model", "blocks": ["3"]}
    asked = request(plain, run_dir, code=UserCode(str(code)))

    trainer = TrainerActor.remote()
    outcome = trainer.fit.remote(asked)
    assert ray.get(trainer.outcome.remote()) is None
    until(lambda: (run_dir / "events.jsonl").exists() and len(events_of(run_dir)) > 3)
    ray.get(trainer.stop.remote())
    ended = ray.get(outcome, timeout=240)
    assert isinstance(ended, StoppedError)
    assert ray.get(trainer.outcome.remote()) == {"event": "failed"} | ended.as_event()
    again = ray.get(trainer.fit.remote(asked), timeout=60)
    assert again.message == ended.message
    assert [event["event"] for event in events_of(run_dir)].count("started") == 1
    ray.kill(trainer)
    for block, layer in enumerate((0, 1)):
        log = (run_dir / "logs" / f"block-{block}.log").read_text()
        for words in (f"layer {layer} prints\n", f"layer {layer} logs", "native code writes\n"):
            assert words in log, log
    printed = log.count(
        "layer 1 prints\n"
    )  # also while it is planned, which leaves the layer as if it never had

    trap.touch()
    trainer = TrainerActor.remote()
    failure = ray.get(trainer.fit.remote(request(plain, run_dir, True, UserCode(str(code)))), timeout=240)
    ray.kill(trainer)
    assert isinstance(failure, LowdimfaError)
    log = (run_dir / "logs" / "block-1.log").read_text()
    assert log.count("layer 1 prints\n") == 2 * printed  # those of the first part are still there
    assert "Traceback" in log and 'talkative_model.py", line' in log and "the user's own mistake" in log
    assert "the user's own mistake" in (run_dir / "logs" / "trainer.log").read_text()


def no_places_are_left() -> bool:
    return {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}


def test_a_killed_trainer_takes_its_blocks_along_and_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    plain = specification("mlp", 3, train={"steps": 100_000, "scheduler": None}, run={"checkpoint_every": 20})
    detached = TrainerActor.options(name="job-run", lifetime="detached")
    detached.remote().fit.remote(request(plain, run_dir))
    until(lambda: CheckpointStore(run_dir).list())
    pids = next(event for event in events_of(run_dir) if event["event"] == "started")["pids"]
    processes = [psutil.Process(pid) for pid in (pids["trainer"], *pids["blocks"])]
    os.kill(pids["trainer"], signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, 60)
    assert not alive

    step = CheckpointStore(run_dir).list()[-1]
    plain["train"]["steps"] = step + 3
    trainer = until(lambda: again(detached))
    finished = ray.get(trainer.fit.remote(request(plain, run_dir, resume=True)), timeout=240)
    assert finished["steps"] == step + 3
    assert no_places_are_left()
    ray.kill(trainer)


def again(detached: Any) -> Any:
    """Make a trainer of the same name, once Ray has seen the end of the one before."""
    try:
        return detached.remote()
    except ValueError:
        return None


def test_an_interrupt_ends_everything_at_once(tmp_path: Path) -> None:
    """As the second Ctrl-C does, in a process whose connection to Ray goes on."""
    started: list[dict[str, Any]] = []

    def interrupt(_trainer: DecoupledTrainer, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            started.append(event)
        if event["event"] == "checkpoint":
            raise KeyboardInterrupt

    plain = specification("mlp", 2, train={"steps": 100_000, "scheduler": None}, run={"checkpoint_every": 20})
    with pytest.raises(KeyboardInterrupt):
        fit(plain, tmp_path / "run", interrupt)
    pids = started[0]["pids"]
    processes = [psutil.Process(pid) for pid in (pids["trainer"], *pids["blocks"]) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, 60)
    assert not alive
    until(no_places_are_left)
    assert events_of(tmp_path / "run")[-1]["code"] == "stopped"
    assert not (tmp_path / "targets" / "run.json").exists()
