"""What the training loop does around a recovery: nothing that was due is left out, nothing given up comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowdimfa.errors import BlockLostError, LowdimfaError, NotFiniteError
from lowdimfa.services.monitoring.journal import Event, Journal
from lowdimfa.services.run.checkpoint import CheckpointStore
from lowdimfa.services.spec import parse_specification
from lowdimfa.services.trainer import execute
from lowdimfa.services.trainer.api import DecoupledTrainer
from lowdimfa.services.trainer.engine import OnSteps, Recovered, RecoveryPolicy, Saved
from lowdimfa.services.trainer.local_engine import LocalEngine
from lowdimfa.services.trainer.run_dir import opened
from lowdimfa.services.trainer.stopping import StopRequest

NETWORK: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
}


class Losing(LocalEngine):
    """Loses a block once the steps before ``lost_at`` are done."""

    lost_at = 20
    reached = 0
    recovers = True

    def run_steps(self, first_step: int, last_step: int, on_steps: OnSteps, stop: StopRequest) -> int:
        until = min(last_step, self.lost_at) if first_step < self.lost_at else last_step
        reached = super().run_steps(first_step, until, on_steps, stop)
        if reached == self.lost_at and first_step < self.lost_at:
            type(self).lost_at = 0
            self.reached = reached
            raise BlockLostError("block 0 lost its process", block=0)
        return reached

    def recover(self, loss: LowdimfaError, policy: RecoveryPolicy, saved: Saved) -> Recovered:
        if policy == "restart":
            checkpoint = saved.newest_good()
            self.close()
            self.start(checkpoint)
            return Recovered(checkpoint or 0, [0], {}, [])
        return Recovered(self.reached, [0], {}, [])


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Event]]:
    class Engine(Losing):
        pass

    def run(
        lost_at: int, resume_step: int | None = None, replaces: bool = False, **section: Any
    ) -> list[Event]:
        Engine.lost_at = lost_at
        monkeypatch.setattr(
            execute, "make_engine", lambda request, plan, watch: Engine(plan, Path(request.run_dir))
        )
        specification = parse_specification(
            {
                **NETWORK,
                "train": {"steps": 40, "batch_size": 16},
                "run": {"evaluate_every_epochs": 0, "tensorboard": False, "checkpoint_every": 20, "keep": 9}
                | section,
            },
            "the test",
        )
        events: list[Event] = []
        trainer = DecoupledTrainer(
            specification,
            engine="local",
            run_dir=tmp_path / "run",
            resume_step=resume_step,
            on_event=events.append,
        )
        if replaces:
            trainer.request = replace(trainer.request, lost_at=time.time())
        trainer.fit()
        assert Engine.lost_at == 0, "the loss was not come to"
        return events

    return run


def test_what_is_due_at_the_step_that_a_recovery_comes_to_is_done(train: Callable[..., list[Event]]) -> None:
    events = train(20, on_failure="rejoin")
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [20, 40]


@pytest.mark.parametrize("lost_at", [15, 25])
def test_a_course_that_was_given_up_does_not_come_back(
    lost_at: int, train: Callable[..., list[Event]], tmp_path: Path
) -> None:
    """Property: after --resume-step, no recovery takes a checkpoint of what came after that step before."""
    train(0, checkpoint_every=10)
    assert CheckpointStore(tmp_path / "run").list() == [10, 20, 30, 40]
    events = train(lost_at, resume_step=10, on_failure="restart", checkpoint_every=0)
    assert [event["step"] for event in events if event["event"] == "recovered"] == [10]
    assert CheckpointStore(tmp_path / "run").every() == [10, 40]  # the last, and that from which it goes on
    assert events[-1]["event"] == "finished"


def test_a_trainer_that_replaces_another_counts_on(train: Callable[..., list[Event]], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with opened(Journal(tmp_path / "run")) as journal:
        journal.emit("recovering", lost="trainer", recovery=1)
    events = train(15, replaces=True, on_failure="restart")
    assert [event["recovery"] for event in events if event["event"] == "recovering"] == [2]


def test_blocks_in_one_process_announce_no_recovery_that_they_can_not_make(tmp_path: Path) -> None:
    events: list[Event] = []
    train = {"optimizer": {"factory": "torch.optim.SGD", "args": {"lr": 1e30}}}
    with pytest.raises(NotFiniteError):
        DecoupledTrainer(
            {
                **NETWORK,
                "train": {"steps": 40, "batch_size": 16} | train,
                "run": {"on_failure": "restart"},
            },
            engine="local",
            run_dir=tmp_path / "run",
            on_event=events.append,
        ).fit()
    assert [event["event"] for event in events][-1] == "failed"
    assert "recovering" not in [event["event"] for event in events]
