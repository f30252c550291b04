"""Jobs whose trainer or cluster was lost go on by themselves, if they should, and as often as they may."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import World

from lowdimfa.errors import (
    BlockLostError,
    BlockWithoutRoomError,
    DiskFullError,
    InputError,
    LowdimfaError,
    NoRoomError,
    NotFiniteError,
    RecoveriesUsedUpError,
)
from lowdimfa.services.coordinator.jobs import JobState
from lowdimfa.services.coordinator.runner import Condition, Look
from lowdimfa.services.coordinator.supervisor import Supervisor


class Clock:
    """Both of Python's clocks, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10_000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def lose(world: World, job_id: str) -> None:
    world.cluster.trainers.pop(world.trainer(job_id), None)


def events(world: World, job_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for _, event in world.store.events(job_id, 0, 1000) if event["event"] == kind]


def start(world: World, job_id: str) -> None:
    """Let the trainer of the job's current attempt say that it runs."""
    world.rounds()
    world.log(job_id, {"event": "started", "steps": 10, "step": 0})
    world.rounds()
    assert world.state(job_id) is JobState.running


@pytest.mark.parametrize("policy", ["restart", "rejoin"])
def test_a_job_whose_trainer_was_lost_goes_on_from_its_checkpoint(
    world: World, clock: Clock, policy: str
) -> None:
    job_id = world.running(policy)
    first = world.trainer(job_id)
    world.log(job_id, {"event": "progress", "step": 7, "steps": 10, "loss": 0.5})
    world.checkpoint(job_id, 5)
    lose(world, job_id)
    world.rounds()
    assert ("release", first) in world.cluster.calls
    assert (world.state(job_id), world.job(job_id).attempt) == (JobState.starting, 2)
    (recovering,) = events(world, job_id, "recovering")
    assert recovering == {
        "event": "recovering",
        "time": clock.now,
        "lost": "trainer",
        "policy": "restart",
        "blocks": [],
        "reason": "the trainer's process was lost",
        "step": 7,
        "recovery": 1,
    }
    (queued,) = [event for event in events(world, job_id, "state") if "lost" in event["detail"]]
    assert (queued["state"], queued["detail"]) == (
        "queued",
        "the trainer's process was lost; goes on from step 5",
    )
    world.rounds()
    request = world.cluster.requests[world.trainer(job_id)]
    assert request.resume and request.lost_at == clock.now
    assert "failed" not in world.kinds(job_id)


def test_without_a_checkpoint_it_begins_anew(world: World) -> None:
    job_id = world.running("restart")
    run_dir = Path(world.job(job_id).run_dir)
    (run_dir / "spec.yaml").write_text("")
    lose(world, job_id)
    world.rounds(2)
    request = world.cluster.requests[world.trainer(job_id)]
    assert not request.resume and request.lost_at is not None
    assert not (run_dir / "spec.yaml").exists()
    assert any("begins anew" in event["detail"] for event in events(world, job_id, "state"))


def test_a_trainer_lost_before_the_job_ran_is_replaced_too(world: World) -> None:
    job_id = world.submit(on_failure="restart")
    world.rounds(2)
    lose(world, job_id)
    world.rounds(2)
    assert (world.state(job_id), world.job(job_id).attempt) == (JobState.starting, 2)
    assert len(events(world, job_id, "recovering")) == 1


def test_losses_beyond_the_budget_end_the_job_also_when_the_coordinator_came_back_between(
    world: World, clock: Clock
) -> None:
    job_id = world.running("restart")
    for number in range(3):
        lose(world, job_id)
        world.restart()
        world.rounds()
        clock.now += 1
        world.rounds()
        assert world.job(job_id).attempt == number + 2
        start(world, job_id)
    lose(world, job_id)
    world.rounds(2)
    job = world.job(job_id)
    assert job.state is JobState.failed and job.error is not None
    assert job.error["setting"] == "run.max_recoveries" and job.error["code"] == "peer_lost"
    assert "makes 4 losses within 600 s, more than run.max_recoveries (3) allows" in job.detail
    assert f"lowdimfa resume {job_id}" in job.detail
    assert [event["recovery"] for event in events(world, job_id, "recovering")] == [1, 2, 3]
    assert len(events(world, job_id, "failed")) == 1


def test_a_person_who_resumes_the_job_begins_with_a_full_budget(world: World, clock: Clock) -> None:
    test_losses_beyond_the_budget_end_the_job_also_when_the_coordinator_came_back_between(world, clock)
    (job,) = world.store.in_states({JobState.failed})
    world.store.transition(job.id, JobState.queued, "")
    world.rounds()
    start(world, job.id)
    lose(world, job.id)
    world.rounds()
    assert world.state(job.id) is JobState.starting


def test_losses_long_ago_do_not_count(world: World, clock: Clock) -> None:
    job_id = world.running("restart")
    for _ in range(8):
        lose(world, job_id)
        world.rounds()
        start(world, job_id)
        clock.now += 601
    assert [event["recovery"] for event in events(world, job_id, "recovering")] == list(range(1, 9))


def test_the_second_loss_in_a_row_waits_and_keeps_its_place(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    job_id = world.running("restart")
    lose(world, job_id)
    world.rounds()
    start(world, job_id)
    behind = world.submit(4)
    lose(world, job_id)
    clock.now += 10
    world.rounds(3)
    assert (world.state(job_id), world.state(behind)) == (JobState.running, JobState.queued)
    clock.now += 0.11
    world.rounds()
    assert (world.state(job_id), world.job(job_id).attempt) == (JobState.starting, 3)
    assert [event["recovery"] for event in events(world, job_id, "recovering")] == [1, 2]


def test_a_coordinator_killed_between_the_loss_and_the_queue_counts_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running("restart")
    lose(world, job_id)
    with monkeypatch.context() as patch:
        patch.setattr(Supervisor, "_go_on", lambda self, job: None)  # as if it ended there
        world.rounds()
    assert world.state(job_id) is JobState.running
    world.restart()
    world.rounds()
    assert (world.state(job_id), world.job(job_id).attempt) == (JobState.starting, 2)
    assert len(events(world, job_id, "recovering")) == 1


@pytest.mark.parametrize(
    ("error", "process", "goes_on"),
    [
        (
            BlockLostError("lost"),
            Condition.lost,
            True,
        ),  # the cluster went away, and the trainer had time to say so
        (BlockLostError("lost"), Condition.ended, True),
        (RecoveriesUsedUpError("lost"), Condition.ended, False),
        (LowdimfaError("no cluster"), Condition.lost, True),  # what Ray raises where it has none any more
        (LowdimfaError("a layer"), Condition.ended, False),
        (NoRoomError("full"), Condition.ended, True),
        (BlockWithoutRoomError("full"), Condition.ended, True),
        (DiskFullError("full"), Condition.ended, False),
        (NotFiniteError("NaN"), Condition.ended, False),
        (NotFiniteError("NaN"), Condition.lost, False),
        (InputError("a", "b", "c"), Condition.lost, False),
    ],
)
def test_what_a_trainer_said_before_it_ended_decides(
    world: World, error: LowdimfaError, process: Condition, goes_on: bool
) -> None:
    outcome = {"event": "failed"} | error.as_event()
    job_id = world.running("restart")
    world.log(job_id, outcome)
    world.cluster.trainers[world.trainer(job_id)] = Look(
        process, outcome if process is Condition.ended else None
    )
    world.rounds(2)
    assert world.state(job_id) is (JobState.starting if goes_on else JobState.failed)


def test_a_job_that_somebody_stops_does_not_go_on(world: World, clock: Clock) -> None:
    job_id = world.running("restart")
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    lose(world, job_id)
    world.rounds(2)
    assert not events(world, job_id, "recovering")
    assert world.job(job_id).ended is not None


def test_a_job_that_is_stopped_while_it_waits_for_its_next_attempt_is_stopped(
    world: World, clock: Clock
) -> None:
    job_id = world.running("restart")
    lose(world, job_id)
    world.rounds()
    start(world, job_id)
    world.checkpoint(job_id, 5)
    lose(world, job_id)
    world.rounds()
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.rounds()
    assert (world.state(job_id), world.job(job_id).detail) == (JobState.stopped, "stopped after step 5")


def test_a_cluster_that_went_away_and_comes_back_empty_takes_its_jobs_up_again(
    world: World, clock: Clock
) -> None:
    kept, given_up = world.running("restart"), world.running("fail")
    world.checkpoint(kept, 5)
    world.cluster.away = "nothing answers"
    world.cluster.trainers.clear()
    world.rounds(3)
    assert {world.state(kept), world.state(given_up)} == {JobState.running}
    world.cluster.away, world.cluster.cpus = "", 0  # the head is back, the workers are not
    clock.now += 10
    world.rounds()
    assert world.state(given_up) is JobState.failed
    assert f"lowdimfa resume {given_up}" in world.job(given_up).detail
    assert world.state(kept) is JobState.queued
    assert "no worker node yet" in world.job(kept).detail
    world.cluster.cpus = 4
    world.rounds(2)
    assert world.cluster.requests[world.trainer(kept)].resume
    assert len(events(world, kept, "recovering")) == 1


def test_a_recovery_that_finds_no_room_in_the_run_s_log_waits_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What isn't noted isn't counted: the job would go on without end."""
    job_id = world.running("restart")
    path = Path(world.job(job_id).run_dir) / "events.jsonl"
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        lose(world, job_id)
        world.rounds(3)
    assert (world.state(job_id), path.read_bytes()) == (JobState.running, before)
    assert "no space left" in events(world, job_id, "warning")[-1]["message"]
    world.rounds()
    assert world.state(job_id) is JobState.starting
    (recovering,) = events(world, job_id, "recovering")
    assert recovering["recovery"] == 1


def test_jobs_of_a_backup_come_to_what_the_operators_are_told(world: World, clock: Clock) -> None:
    world.cluster.cpus = 16
    going_on, failing, stopping = world.running("restart"), world.running(), world.running("restart")
    world.checkpoint(going_on, 5)
    world.store.update(stopping, stop_requested="graceful")
    world.store.transition(stopping, JobState.stopping, "")
    beginning = world.submit()
    world.rounds()
    assert world.state(beginning) is JobState.starting
    world.cluster.trainers.clear()
    world.restart()
    world.rounds(2)
    assert world.state(going_on) is JobState.starting and world.job(going_on).attempt == 2
    assert world.state(beginning) is JobState.starting
    assert world.trainer(going_on) in world.cluster.trainers
    assert world.trainer(beginning) in world.cluster.trainers
    for job_id in (failing, stopping):
        error = world.job(job_id).error
        assert world.state(job_id) is JobState.failed and error is not None and error["code"] == "peer_lost"


@pytest.mark.parametrize(
    "time", [None, "soon", [1], True, float("nan"), float("inf"), pytest.param(10**400, id="huge")]
)
def test_recoveries_that_a_job_s_own_code_made_up_keep_it_from_nothing(
    world: World, clock: Clock, time: Any
) -> None:
    job_id = world.running("restart")
    made_up = {"event": "recovering", "time": time}
    world.log(job_id, {**made_up, "lost": "blocks"}, {"event": "recovered", "step": 3})
    lose(world, job_id)
    world.rounds(2)
    assert world.state(job_id) is JobState.starting and world.job(job_id).attempt == 2
    start(world, job_id)
    world.log(job_id, {**made_up, "lost": "trainer"})
    lose(world, job_id)
    world.rounds(3)
    assert world.state(job_id) is JobState.starting and world.job(job_id).attempt == 3
    start(world, job_id)
    details = [event["detail"] for event in events(world, job_id, "state") if event["state"] == "queued"]
    assert details[1:] == ["the trainer's process was lost; begins anew"] * 2
    assert "warning" not in world.kinds(job_id)
