"""Recovery with real processes: blocks that are killed, that hang, and messages that get lost, at seeded random steps."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from specifications import specification

from lowdimfa.errors import BlockLostError, LowdimfaError, PeerError
from lowdimfa.services.run.checkpoint import CheckpointStore, export_state
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.results import Result

BLOCKS = 4
HEAD = BLOCKS - 1
SECONDS = 5.0
"""Training goes on within this time, and that of a start of all blocks, after a block was killed."""

EVERY = [*range(BLOCKS)]
"""Blocks to kill."""


pytestmark = pytest.mark.usefixtures("cluster")

LIVENESS = 12.0
"""Of a run whose trainer falls silent: long enough for a busy machine, since a false alarm would be a recovery more."""


def job(
    policy: str, faults: list[dict[str, Any]], steps: int = 120, blocks: int = BLOCKS, **run: Any
) -> dict[str, Any]:
    settings = {"on_failure": policy, "liveness_seconds": 60.0, "max_recoveries": 20} | run
    return specification(
        "cnn", blocks, "hebbian", train={"steps": steps}, run=settings, drill={"faults": faults}
    )


def fit(plain: dict[str, Any], run_dir: Path, engine: str = "ray") -> tuple[Result, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    trainer = DecoupledTrainer(plain, engine=engine, run_dir=run_dir, on_event=events.append)  # type: ignore[arg-type]
    return trainer.fit(), events


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return export_state(CheckpointStore(run_dir).load(None))


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def kills(blocks: list[int], seed: int, steps: int) -> list[dict[str, Any]]:
    """Blocks in turn, the head last, each at a random step of its own part of the run."""
    draw, part = random.Random(seed), steps // BLOCKS
    return [
        {"kind": "crash", "block": block, "step": block * part + draw.randrange(1, part)} for block in blocks
    ]


@pytest.mark.slow
def test_restart_gives_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    faults = [
        *kills(EVERY, seed=5, steps=120),
        {"kind": "hang", "block": 1, "step": 118, "seconds": 40},
        {"kind": "drop", "block": 2, "step": 3},
        {"kind": "duplicate", "block": 0, "step": 4},
        {"kind": "reorder", "block": 1, "step": 5},
        {"kind": "corrupt", "block": HEAD, "step": 6},
        {"kind": "nan", "block": 0, "step": 7},
        {"kind": "disk_full", "block": 2, "step": 20},
    ]
    plain = job("restart", faults, checkpoint_every=25, liveness_seconds=8.0)
    _, events = fit(plain, tmp_path / "ray")
    _, undisturbed = fit(job("restart", []), tmp_path / "local", engine="local")
    found, expected = weights(tmp_path / "ray"), weights(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert of(events, "finished")[0]["test_loss"] == of(undisturbed, "finished")[0]["test_loss"]
    lost = [event["blocks"] for event in of(events, "recovered")]
    assert sorted(lost) == sorted([[], [1], *([block] for block in EVERY)])  # none for what is not finite
    assert [event["step"] for event in of(events, "checkpoint_failed")] == [25]
    happened = tmp_path / "ray" / "faults"
    assert len(list(happened.iterdir())) == len(faults)


@pytest.mark.parametrize("killed", [[1, HEAD], pytest.param(EVERY, marks=pytest.mark.slow)], ids=str)
def test_rejoin_goes_on_in_seconds_and_loses_no_more_than_it_says(killed: list[int], tmp_path: Path) -> None:
    plain = job("rejoin", kills(killed, seed=6, steps=200), steps=200, snapshot_every=5)
    began = time.time()
    result, events = fit(plain, tmp_path / "ray")
    start = of(events, "started")[0]["time"] - began
    undisturbed, _ = fit(job("rejoin", [], steps=200), tmp_path / "local", engine="local")
    recovered = of(events, "recovered")
    assert [event["blocks"] for event in recovered] == [[block] for block in killed]
    for begun, event in zip(of(events, "recovering"), recovered, strict=True):
        assert event["seconds"] < start + SECONDS, event
        assert event["step"] >= begun["step"]  # nobody goes back
        lost = event["blocks"][0]
        # Five steps between snapshots, and the step that the head, or whoever is furthest, was ahead of it.
        assert event["missed"].get(str(lost), 0) <= 5 + 1
        assert all(steps <= 1 for block, steps in event["missed"].items() if block != str(lost))
        if lost != HEAD:  # the others made every update that the head had broadcast
            assert event["missed"].keys() <= {str(lost)}
    assert len({pid for event in recovered for pid in event["pids"]["blocks"]}) == BLOCKS + len(killed) - 1
    assert result.metrics["test_accuracy"] > undisturbed.metrics["test_accuracy"] - 0.03


def test_a_run_that_may_not_recover_leaves_every_blocks_last_words(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    crash = {"kind": "crash", "block": 2, "step": 9}
    plain = job(
        "fail", [crash], checkpoint_every=6, background_checkpoints=False
    )  # else it may be lost with the block
    trainer = DecoupledTrainer(plain, run_dir=tmp_path / "run", on_event=events.append)
    with pytest.raises(BlockLostError, match="block 2 lost its process") as caught:
        trainer.fit()
    assert caught.value.block == 2
    assert of(events, "failed")[0]["code"] == "peer_lost"
    assert CheckpointStore(tmp_path / "run").load(None).step == 6
    pids = of(events, "started")[0]["pids"]
    left = [psutil.Process(pid) for pid in (pids["trainer"], *pids["blocks"]) if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(left, 60)[1]
    words = (tmp_path / "run" / "postmortem.txt").read_text("utf-8")
    sections = words.split("===== block ")[1:]
    assert [section[0] for section in sections] == ["0", "1", "2", "3"]
    assert "no answer; the end of" in sections[2]
    for section in (sections[0], sections[1], sections[3]):
        for part in ("now: waiting for", "queues: inbox", "of step 8", "thread block-", "in _wait"):
            assert part in section


def test_losses_beyond_the_budget_end_the_run(tmp_path: Path) -> None:
    faults = [{"kind": "crash", "block": 0, "step": step} for step in (3, 5)]
    with pytest.raises(PeerError, match=r"2 losses within 600 s, more than run.max_recoveries \(1\) allows"):
        fit(job("rejoin", faults, blocks=2, max_recoveries=1), tmp_path / "run")


LAYERS = """
from torch import nn

class OutOfRange(Exception):
    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")

class Failing(nn.Linear):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 40:
            raise OutOfRange(7, "a value beyond the table")
        return super().forward(x)

def model():
    layers = [nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), Failing(24, 24), nn.Linear(24, 10)]
    return nn.Sequential(nn.Flatten(), *layers)
"""


def test_an_error_of_a_layer_is_no_loss_and_keeps_its_words(tmp_path: Path) -> None:
    (tmp_path / "users_table.py").write_text(LAYERS)
    plain = job("restart", [], steps=40)
    plain["model"] = {"factory": "users_table:model", "blocks": 3}
    events: list[dict[str, Any]] = []
    run_dir = tmp_path / "run"
    trainer = DecoupledTrainer(plain, run_dir=run_dir, user_code=tmp_path, on_event=events.append)
    with pytest.raises(LowdimfaError, match=r"OutOfRange: a value beyond the table \(7\)") as caught:
        trainer.fit()
    assert type(caught.value) is LowdimfaError and caught.value.exit_code == 1
    assert f"{tmp_path}/users_table.py, line 13" in caught.value.message
    assert of(events, "recovering") == [] and events[-1]["message"] == caught.value.message
    assert str(run_dir / "traceback.txt") in caught.value.message
    assert "raise OutOfRange(7" in (run_dir / "traceback.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trainer_that_is_stopped_is_replaced_as_a_killed_one_is(tmp_path: Path) -> None:
    """SIGSTOP: the process is there, and gives no answer. So is one whose machine has no memory left for it."""
    stopped: list[int] = []
    events: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "checkpoint" and not stopped:
            stopped.extend(of(events, "started")[0]["pids"][role] for role in ["trainer"])
            os.kill(stopped[0], signal.SIGSTOP)

    plain = job("rejoin", [], steps=200, liveness_seconds=LIVENESS, checkpoint_every=20)
    plain["model"] = plain["model"] | {"blocks": 2}  # whose processes start sooner than four
    result = DecoupledTrainer(plain, run_dir=tmp_path / "run", on_event=stop).fit()
    assert result.metrics["steps"] == 200
    (recovering,) = of(events, "recovering")
    assert recovering["reason"].startswith("the trainer's process was lost: it gave no answer")
    noticed = recovering["time"] - of(events, "checkpoint")[0]["time"]
    assert LIVENESS - 1 < noticed < 3 * LIVENESS
    first, second = (event["pids"]["trainer"] for event in of(events, "started"))
    assert first == stopped[0] != second
    psutil.wait_procs([psutil.Process(pid) for pid in stopped if psutil.pid_exists(pid)], LIVENESS)
    assert not psutil.pid_exists(first)
