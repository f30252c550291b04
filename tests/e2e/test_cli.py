"""The command as users meet it: a run, what it leaves, and what can be done with that."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from command import (
    COMMAND,
    DIGITS,
    EXAMPLES,
    Going,
    Outcome,
    contents,
    environment,
    held,
    local,
    lowdimfa,
    refused,
    settings,
    started,
    train,
)
from forks import Forks
from safetensors.torch import load_file

from lowdimfa.services.rpc.v1 import coordinator_pb2 as pb

FINISHED = {
    "event", "time", "run_dir", "steps", "samples", "seconds", "samples_per_second", "test_loss",
    "test_accuracy", "blocks", "error_dim", "broadcast_payload_bytes_per_sample",
    "broadcast_wire_bytes_per_sample", "parameters", "test_perplexity", "test_bits_per_byte", "test_tokens",
}  # fmt: skip
COURSE = settings(train__epochs=10, run__checkpoint_every=50)
UNBROKEN = settings(train__epochs=None, train__steps=1_000_000, run__evaluate_every_epochs=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """An uninterrupted run of the digits example."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, train(DIGITS, run_dir, *COURSE)


def test_the_service_has_room_for_all_that_a_run_tells(run: tuple[Path, Outcome]) -> None:
    for event in run[1].events:
        kind = pb.JobEvent.DESCRIPTOR.fields_by_name[event["event"]].message_type
        assert event.keys() - {"event", "time"} <= {field.name for field in kind.fields}, event["event"]


@pytest.fixture(scope="module")
def custom(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    run_dir = tmp_path_factory.mktemp("runs") / "custom"
    spec = EXAMPLES / "custom" / "spec.yaml"
    return run_dir, forks.run(*local(spec, run_dir), *settings(train__epochs=2))


def test_a_run_in_json(run: tuple[Path, Outcome]) -> None:
    run_dir, outcome = run
    assert outcome.code == 0
    assert outcome.stderr == ""
    first, *_, last = outcome.events
    assert first["event"] == "started"
    assert last.keys() == FINISHED
    assert (last["event"], last["run_dir"], last["steps"]) == ("finished", str(run_dir), 300)
    assert (last["samples"], last["blocks"], last["error_dim"]) == (15000, 4, 10)
    assert last["test_accuracy"] > 0.95
    assert outcome.of("progress")[-1]["step"] == 300
    assert [event["step"] for event in outcome.of("checkpoint")] == list(range(50, 301, 50))
    assert json.loads((run_dir / "result.json").read_text()) == last
    assert [json.loads(line) for line in (run_dir / "events.jsonl").open()] == outcome.events
    checkpoints = sorted((run_dir / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000250", "step-00000300"]
    assert all((path / "manifest.json").is_file() for path in checkpoints)


def test_evaluate_reproduces_the_result(run: tuple[Path, Outcome], forks: Forks) -> None:
    run_dir, outcome = run
    before = contents(run_dir)
    (evaluated,) = forks.run("evaluate", run_dir, "--format", "json").events
    finished = outcome.events[-1]
    for key in ("test_loss", "test_accuracy"):
        assert evaluated[key] == finished[key]
    assert contents(run_dir) == before


PLAIN = """
import sys
import torch
from safetensors.torch import load_file
{model}
model.load_state_dict(load_file(sys.argv[1]), strict=True)
model.eval()
print((model(inputs).argmax(1) == targets).double().mean().item())
assert not any(name.startswith(("lowdimfa.services", "ray.", "grpc.")) for name in sys.modules)
"""
DIGITS_MODEL = """
from lowdimfa.data import digits
from lowdimfa.models import mlp
model = mlp(in_features=64, width=128, depth=4, classes=10)
split = digits().test
inputs, targets = (part(torch.arange(len(split))) for part in (split.inputs, split.targets))
"""
CUSTOM_MODEL = """
from my_project import make_data, make_model
model = make_model(width=64)
_, _, inputs, targets = make_data(samples=4096)
"""


@pytest.mark.parametrize(("which", "model"), [("run", DIGITS_MODEL), ("custom", CUSTOM_MODEL)])
def test_export_loads_into_the_plain_model(
    which: str, model: str, request: pytest.FixtureRequest, forks: Forks, tmp_path: Path
) -> None:
    run_dir, outcome = request.getfixturevalue(which)
    file = tmp_path / "model.safetensors"
    assert forks.run("export", run_dir, "--output", file).code == 0
    done = subprocess.run(
        [sys.executable, "-c", PLAIN.format(model=model), file],
        cwd=EXAMPLES / "custom",
        env=environment(PYTHONPATH=str(EXAMPLES / "custom")),
        capture_output=True,
        text=True,
    )
    assert float(done.stdout) == pytest.approx(outcome.events[-1]["test_accuracy"]), done.stderr


def test_report_writes_its_files(run: tuple[Path, Outcome], forks: Forks) -> None:
    run_dir, _ = run
    outcome = forks.run("report", run_dir)
    assert outcome.code == 0, outcome
    assert (run_dir / "report" / "index.html").stat().st_size > 1000


def test_a_killed_run_goes_on_to_the_same_weights(
    run: tuple[Path, Outcome], forks: Forks, tmp_path: Path
) -> None:
    whole, _ = run
    killed, spec = tmp_path / "killed", tmp_path / "spec.yaml"
    spec.write_bytes(DIGITS.read_bytes())
    with Going(forks.start(*local(spec, killed), *COURSE, *held(spec, "checkpoint-50"))) as going:
        going.until("checkpoint")
        going.process.send_signal(signal.SIGKILL)
        assert going.end().code == -signal.SIGKILL
    outcome = forks.run(*local(spec, killed), *COURSE, "--resume")
    assert outcome.code == 0, outcome
    assert outcome.of("started")[0]["step"] >= 50
    for name, run_dir in (("a", whole), ("b", killed)):
        assert forks.run("export", run_dir, "--output", tmp_path / name).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_finished_run_resumes_without_training(run: tuple[Path, Outcome], forks: Forks) -> None:
    run_dir, outcome = run
    again = forks.run(*local(DIGITS, run_dir), *COURSE, "--resume")
    assert again.code == 0
    assert [event["event"] for event in again.events] == ["started", "evaluated", "finished"]
    for key in ("steps", "test_loss", "test_accuracy", "seconds"):
        assert again.events[-1][key] == outcome.events[-1][key]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train__batch_size": 25}, ("train.batch_size", "25", "50")),
        ({"train__seed": 7}, ("train.seed", "7", "0")),
        ({"feedback__error_dim": 3}, ("feedback.error_dim", "3", "10")),
        ({"model__args__width": 64}, ("another model", "[128, 64]", "[64, 64]")),
        ({"train__optimizer__factory": "torch.optim.Adam"}, ("train.optimizer", "Adam'", "AdamW")),
    ],
)
def test_a_changed_run_is_not_resumed(
    change: dict[str, object], words: tuple[str, ...], run: tuple[Path, Outcome], forks: Forks
) -> None:
    run_dir, _ = run
    before = contents(run_dir)
    outcome = forks.run(*local(DIGITS, run_dir), *settings(**change), "--resume")
    refused(outcome, *words)
    assert [event["event"] for event in outcome.events] == ["failed"]
    assert contents(run_dir) == before


def test_other_boundaries_and_more_steps(run: tuple[Path, Outcome], forks: Forks, tmp_path: Path) -> None:
    whole, _ = run
    copy = tmp_path / "fewer"
    for name, content in contents(whole).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    more = settings(model__blocks=2, train__epochs=11)
    again = forks.run(*local(DIGITS, copy), *more, "--resume")
    assert again.code == 0, again
    assert (again.events[-1]["blocks"], again.events[-1]["steps"]) == (2, 330)
    assert again.events[-1]["test_accuracy"] > 0.95


NOTICE = "stopping: finishing the step and writing a checkpoint; again to stop at once"


def stopped_at(outcome: Outcome, run_dir: Path) -> int:
    """Check how a run ended that was stopped in order, and return the step to go on from."""
    *_, checkpoint, failed = outcome.events
    step = checkpoint["step"]
    assert (checkpoint["event"], failed["event"]) == ("checkpoint", "failed")
    assert (failed["code"], failed["exit_code"], failed["step"]) == ("stopped", 130, step)
    notice, message = outcome.said
    assert notice == NOTICE
    assert message == f"lowdimfa: stopped; go on from step {step} with --resume --run-dir {run_dir}"
    assert outcome.code == 130
    return int(step)


def test_signals_end_a_run_that_can_go_on(forks: Forks, tmp_path: Path) -> None:
    arguments = (*local(DIGITS, run_dir := tmp_path / "stopped"), *UNBROKEN)
    reached = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        first = number == signal.SIGINT
        with Going(forks.start(*arguments, *([] if first else ["--resume"]))) as going:
            going.until("progress")
            if first:
                refused(forks.run(*arguments, "--resume"), "another trainer", str(run_dir))
            going.process.send_signal(number)
            outcome = going.end()
        before, reached = reached, stopped_at(outcome, run_dir)
        assert reached > before
    assert forks.run("export", run_dir, "--output", tmp_path / "model.safetensors").code == 0


SLOW = """
import time
from torch import nn

class Slow(nn.Module):
    def forward(self, inputs):
        if len(inputs) > 16:  # not the few samples on which the model is tried
            print("the step has begun", flush=True)
            time.sleep(600)
        return inputs

def make_model():
    return nn.Sequential(nn.Flatten(), Slow(), nn.Linear(64, 10))
"""


def test_a_second_signal_ends_a_run_in_the_middle_of_its_step(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "spec.yaml").write_bytes(DIGITS.read_bytes())
    slow = settings(model__factory="slow:make_model", model__args={}, model__blocks=1)
    with Going(forks.start(*local(tmp_path / "spec.yaml", tmp_path / "run"), *slow)) as going:
        assert going.said() == "the step has begun\n"  # where a model's own output goes
        going.interrupt()
        assert going.said() == f"{NOTICE}\n"
        going.interrupt()
        outcome = going.end()
    refused(outcome, "stopped before the first checkpoint", code=130)
    assert outcome.events[-1]["code"] == "stopped"


@pytest.mark.xdist_group("ray")
def test_ctrl_c_on_ray_stops_in_order(forks: Forks, tmp_path: Path) -> None:
    run_dir, blocks = tmp_path / "stopped", settings(model__blocks=2)
    with started(*local(DIGITS, run_dir), *UNBROKEN, *blocks, "--engine", "ray") as going:
        pids = going.until("started")[-1]["pids"]
        going.until("progress")
        going.interrupt()
        outcome = going.end()
    step = stopped_at(outcome, run_dir)
    processes = [psutil.Process(pid) for pid in (pids["trainer"], *pids["blocks"]) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, 60)
    assert not alive
    longer = settings(train__epochs=None, train__steps=step + 3)
    again = forks.run(*local(DIGITS, run_dir), *blocks, *longer, "--resume")
    assert again.events[-1]["steps"] == step + 3


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(forks: Forks, tmp_path: Path) -> None:
    run_dir = tmp_path / "diverged"
    lr = settings(train__optimizer__args__lr=1e9, run__checkpoint_every=1)
    outcome = forks.run(*local(DIGITS, run_dir), *lr)
    refused(outcome, "block", "step", "lr", code=3)
    failed = outcome.events[-1]
    assert (failed["event"], failed["code"], failed["exit_code"]) == ("failed", "not_finite", 3)
    assert {"block", "step"} <= failed.keys()
    assert all((path / "manifest.json").is_file() for path in (run_dir / "checkpoints").iterdir())
    file = tmp_path / "model.safetensors"
    assert forks.run("export", run_dir, "--output", file).code == 0
    assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    refused(forks.run(*local(DIGITS, run_dir), *lr, "--resume"), "block", "step", code=3)


def test_text_without_a_terminal_has_no_control_characters(forks: Forks, tmp_path: Path) -> None:
    outcome = forks.run(
        "train", DIGITS, "--engine", "local", "--run-dir", tmp_path / "run", *settings(train__epochs=2)
    )
    assert outcome.code == 0
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", outcome.stdout) is None
    assert outcome.stdout.splitlines()[0].startswith("4 blocks")
    assert outcome.stdout.splitlines()[-1].startswith("finished: test accuracy")
    assert outcome.stderr == ""


def test_text_on_a_terminal_fits_it(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [COMMAND, "train", DIGITS, "--engine", "local", "--run-dir", tmp_path / "run"]
    with subprocess.Popen(
        [*command, *settings(train__epochs=2)],
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other side is closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "60/60" in text
    assert "…" not in text
    lines = text.rstrip().splitlines()
    last = next(number for number, line in enumerate(lines) if line.startswith("finished: test accuracy"))
    assert " ".join(lines[last:]).endswith("samples/s)")  # on several lines of the width, if it is longer
    assert all(len(line) <= 80 for line in lines[last:])


def test_help_and_version(forks: Forks) -> None:
    assert re.fullmatch(r"lowdimfa \d+\.\d+\.\d+\n", lowdimfa("--version").stdout)
    shown = forks.run("train", "--help").stdout
    for option in (
        "--set",
        "--engine",
        "--address",
        "--run-dir",
        "--resume",
        "--resume-step",
        "--dry-run",
        "--format",
    ):
        assert option in shown


def test_data_sets_are_listed_and_fetched(forks: Forks) -> None:
    shown = forks.run("data", "list", LOWDIMFA_DATA="/nowhere").stdout
    for name in ("digits", "teacher", "fashion_mnist", "shakespeare", "diamonds"):
        assert name in shown
    assert "nothing to fetch" in forks.run("data", "fetch", "digits").stdout
    refused(forks.run("data", "fetch", "imagenet"), "imagenet", "digits")


def test_token_files_are_made_and_trained_on(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "plays").mkdir()
    for number in range(9):
        (tmp_path / "plays" / f"{number}.txt").write_text(
            f"{number} to be, or not to be: that is the question. " * 30
        )
    made = "data", "tokens", tmp_path / "plays", "--out", tmp_path / "tokens", "--vocabulary"
    outcome = forks.run(*made, 280, "--format", "json")
    assert outcome.code == 0
    (told,) = outcome.events
    assert told["vocabulary"] == 280 and not told["present"] and told["test"]["documents"] == 1
    assert "is there already" in forks.run(*made, 280).stdout
    refused(forks.run(*made, 300), "tokens", "made otherwise")
    refused(forks.run(*made, 200), "--vocabulary", "200", "257")
    refused(forks.run("data", "tokens", "nowhere", "--out", tmp_path / "other"), "'nowhere'", "a folder")
    factory = settings(
        model__factory="lowdimfa.models:char_transformer",
        model__args={"vocabulary": 280, "context": 8, "width": 16, "depth": 2, "heads": 2},
        data__factory="lowdimfa.data:tokens",
        model__blocks=2,
        data__args={"path": str(tmp_path / "tokens"), "context": 8, "documents": "mask"},
        train__epochs=1,
    )
    trained = forks.run(*local(DIGITS, tmp_path / "run"), *factory)
    assert trained.code == 0, trained.stderr
