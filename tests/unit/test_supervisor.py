"""The supervisor, round by round, with a cluster in memory and trainers that write their logs when they are told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import FAILED, STOPPED, World

from lowdimfa.errors import NoRoomError
from lowdimfa.services.coordinator import queue
from lowdimfa.services.coordinator import supervisor as supervisor_module
from lowdimfa.services.coordinator.attempt import RunRequests
from lowdimfa.services.coordinator.jobs import STOPPED_WAITING, Job, JobState, Submission
from lowdimfa.services.coordinator.queue import StartOrder, start_order
from lowdimfa.services.coordinator.runner import Capacity, Condition, Look
from lowdimfa.services.recovery.deadlines import longest_silence
from lowdimfa.services.trainer.request import RunRequest


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_job_goes_from_the_queue_to_its_end(world: World) -> None:
    job_id = world.running()
    world.log(job_id, {"event": "progress", "step": 10, "steps": 10, "loss": 0.1})
    world.ended(job_id, {"event": "finished", "steps": 10, "test_accuracy": 0.5})
    world.rounds()
    job = world.job(job_id)
    assert (job.state, job.step, job.loss, job.test_accuracy) == (JobState.finished, 10, 0.1, 0.5)
    assert world.kinds(job_id) == [
        "queued",
        "starting",
        "started",
        "running",
        "progress",
        "finished",
        "finished",
    ]
    assert ("release", f"job-{job_id}-1") in world.cluster.calls
    assert job_id in world.changed


@pytest.mark.parametrize("ended", [False, True])
def test_what_happened_is_in_the_order_in_which_it_happened(world: World, ended: bool) -> None:
    """A short job has logged its start and more, or even its end, before it is looked at."""
    job_id = world.submit()
    world.rounds(2)
    start, progress = {"event": "started", "steps": 10, "step": 0}, {"event": "progress", "step": 10}
    world.log(job_id, {"event": "warning", "message": "x"}, start, progress)
    if ended:
        world.ended(job_id, {"event": "finished", "steps": 10})
    world.rounds(2)
    known = ["queued", "starting", "warning", "started", "running", "progress"]
    assert world.kinds(job_id) == known + ["finished", "finished"] * ended
    assert world.job(job_id).step == 10


def test_the_request_has_the_service_s_storage_and_the_user_s_files(world: World) -> None:
    job_id = world.submit(files={"my.py": "x = 1\n", "pkg/deep.py": "y = 2\n"})
    world.rounds(2)
    request = world.cluster.requests[world.trainer(job_id)]
    assert request.specification["run"]["storage"] == str(world.folder / "runs")
    assert request.specification["run"]["metrics"] == "node"
    assert request.engine == "ray" and not request.resume
    code = Path(str(request.user_code.folder))
    assert (code / "my.py").read_text() == "x = 1\n" and (code / "pkg" / "deep.py").read_text() == "y = 2\n"
    assert code.parent == Path(request.run_dir) == world.folder / "runs" / job_id


def test_jobs_start_in_order_as_far_as_there_is_room(world: World) -> None:
    jobs = [world.submit(cpus) for cpus in (3, 2, 1)]
    world.rounds()
    assert [world.state(job) for job in jobs] == [JobState.starting, JobState.queued, JobState.queued]
    assert world.job(jobs[1]).detail == "waits for 2 CPUs: 1 of 4 are free"
    assert world.job(jobs[2]).detail == ""  # it is behind, though there is room for it


def test_parts_of_a_core_add_up_to_whole_ones(world: World) -> None:
    world.cluster.cpus = 1
    jobs = []
    for _ in range(5):
        jobs.append(world.submit(0.2))
        world.rounds()
    assert {world.state(job_id) for job_id in jobs} == {JobState.starting}


def test_room_that_other_users_have_taken_is_not_given_away(world: World) -> None:
    world.cluster.used = 3
    job = world.submit(2)
    world.rounds()
    assert world.job(job).detail == "waits for 2 CPUs: 1 of 4 are free"


def test_a_job_larger_than_the_cluster_says_so_and_holds_nobody_up(world: World) -> None:
    large, small = world.submit(64), world.submit(1)
    world.rounds()
    assert world.state(large) is JobState.queued
    assert "the whole cluster has 4 CPUs: add nodes" in world.job(large).detail
    assert world.state(small) is JobState.starting


def test_a_job_that_is_stopped_while_the_queue_is_gone_through_stays_stopped_and_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [world.submit(cpus) for cpus in (1, 1, 4)]

    def meanwhile(*given: Any) -> StartOrder:
        order = start_order(*given)
        for job in (jobs[0], jobs[2]):
            world.store.transition(job, JobState.stopped, STOPPED_WAITING)
        return order

    monkeypatch.setattr(supervisor_module, "start_order", meanwhile)
    world.rounds()
    assert [world.state(job) for job in jobs] == [JobState.stopped, JobState.starting, JobState.stopped]
    for job in (jobs[0], jobs[2]):
        assert world.job(job).detail == STOPPED_WAITING
        assert world.kinds(job) == ["queued", "stopped"]


def test_the_next_starts_when_a_job_has_ended(world: World) -> None:
    first, second = world.submit(4), world.submit(4)
    world.rounds(2)
    world.ended(first, FAILED)
    world.rounds(2)
    assert (world.state(first), world.state(second)) == (JobState.failed, JobState.starting)


def test_a_failure_keeps_the_error_and_its_words(world: World) -> None:
    job_id = world.running()
    world.ended(job_id, FAILED)
    world.rounds()
    job = world.job(job_id)
    assert (job.state, job.detail) == (JobState.failed, "the loss is NaN")
    assert job.error is not None and job.error["code"] == "not_finite"


def test_a_failure_before_there_was_a_log_is_in_the_stream_all_the_same(world: World) -> None:
    job_id = world.submit()
    world.rounds(2)
    world.ended(job_id, FAILED, logged=False)
    world.rounds()
    assert world.kinds(job_id) == ["queued", "starting", "failed", "failed"]


def test_a_lost_trainer_fails_the_job_with_a_way_on(world: World) -> None:
    job_id = world.running()
    world.cluster.trainers.clear()
    world.rounds()
    job = world.job(job_id)
    assert job.state is JobState.failed and job.error is not None
    assert job.error["code"] == "peer_lost" and f"lowdimfa resume {job_id}" in job.detail


def test_a_cluster_out_of_reach_fails_nothing(world: World) -> None:
    job_id, queued = world.running(), world.submit(4)
    world.cluster.away = "no route"
    world.log(job_id, {"event": "progress", "step": 3, "steps": 10, "loss": 1.0})
    world.rounds()
    assert (world.state(job_id), world.job(job_id).step) == (JobState.running, 3)
    assert world.job(queued).detail == "the cluster can't be reached: no route"
    assert world.supervisor.health.cluster_error == "no route"
    world.cluster.away = ""
    world.restart()  # instead of waiting for the pause between attempts to pass
    world.rounds()
    assert world.job(queued).detail == "waits for 4 CPUs: 2 of 4 are free"
    assert world.supervisor.health.cluster_error == ""


def test_a_graceful_stop_is_passed_on_once_and_ends_in_stopped(world: World) -> None:
    job_id = world.running()
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.rounds(3)
    assert world.cluster.calls.count(("stop", world.trainer(job_id))) == 1
    world.ended(job_id, STOPPED)
    world.rounds()
    assert (world.state(job_id), world.job(job_id).detail) == (JobState.stopped, "stopped after step 7")


def test_a_stop_at_once_ends_the_trainer_and_its_targets(world: World) -> None:
    job_id = world.running()
    targets = world.folder / "runs" / "targets" / f"{job_id}.json"
    targets.parent.mkdir()
    targets.write_text("[]")
    world.store.update(job_id, stop_requested="now")
    world.store.transition(job_id, JobState.stopping, "")
    world.rounds(2)
    assert world.state(job_id) is JobState.stopped
    assert not targets.exists()


def test_a_graceful_stop_that_takes_too_long_becomes_one_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now[0])
    job_id = world.running()
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.rounds()
    now[0] += 29
    world.rounds()
    assert world.job(job_id).stop_requested == "graceful"
    now[0] += 2
    world.rounds(3)
    assert world.state(job_id) is JobState.stopped
    assert "warning" in world.kinds(job_id)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("liveness", [10, 400])
def test_a_trainer_that_stays_silent_is_ended_after_its_job_s_own_deadline(
    running: bool, liveness: float, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now[0])
    job_id = world.submit(liveness=liveness)
    world.rounds(2)
    if running:
        world.log(job_id, {"event": "started", "steps": 10, "step": 0})
        world.rounds()
    trainer = world.trainer(job_id)
    world.cluster.trainers[trainer] = Look(Condition.silent)
    world.rounds()
    now[0] += longest_silence(liveness, running) - 1
    world.rounds()
    assert world.state(job_id) is (JobState.running if running else JobState.starting)
    now[0] += 2
    world.rounds(2)
    assert ("stop now", trainer) in world.cluster.calls
    assert world.state(job_id) is JobState.failed


def test_a_job_stopped_before_its_trainer_was_made_is_stopped_and_not_failed(world: World) -> None:
    job_id = world.submit()
    world.rounds()
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.rounds()
    assert world.state(job_id) is JobState.stopped


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("on_failure", ["fail", "restart"])
def test_a_resumed_job_stopped_before_it_trains_is_stopped_with_its_checkpoint(
    world: World, told: bool, on_failure: str
) -> None:
    job_id = world.running(on_failure)
    (Path(world.job(job_id).run_dir) / "spec.yaml").write_text("")
    world.checkpoint(job_id, 5)
    world.ended(job_id, FAILED)
    world.rounds()
    world.store.transition(job_id, JobState.queued, "")
    world.rounds(1 + told)
    assert world.state(job_id) is JobState.starting
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.cluster.trainers.clear()
    world.rounds()
    assert (world.state(job_id), world.job(job_id).detail) == (JobState.stopped, "stopped after step 5")
    world.store.transition(job_id, JobState.queued, "")
    world.rounds(2)
    assert world.cluster.requests[world.trainer(job_id)].resume


def test_a_job_whose_trainer_is_lost_while_it_stops_has_failed(world: World) -> None:
    job_id = world.running()
    (Path(world.job(job_id).run_dir) / "spec.yaml").write_text("")
    world.store.update(job_id, stop_requested="graceful")
    world.store.transition(job_id, JobState.stopping, "")
    world.cluster.trainers.clear()
    world.rounds()
    assert world.state(job_id) is JobState.failed


def test_room_lost_while_the_blocks_were_placed_sends_the_job_back_to_the_queue(world: World) -> None:
    job_id = world.submit()
    world.rounds(2)
    world.ended(job_id, {"event": "failed"} | NoRoomError("no room", setting="placement").as_event())
    world.cluster.used = 4
    world.rounds()
    assert world.state(job_id) is JobState.queued
    world.cluster.used = 0
    world.rounds(2)
    assert (world.state(job_id), world.job(job_id).attempt) == (JobState.starting, 2)


def test_a_resumed_job_goes_on_from_its_checkpoint_and_one_without_begins_anew(world: World) -> None:
    with_checkpoint, without = world.running(), world.running()
    for job_id in (with_checkpoint, without):
        run_dir = Path(world.job(job_id).run_dir)
        (run_dir / "spec.yaml").write_text("")
        world.ended(job_id, FAILED)
    world.checkpoint(with_checkpoint, 5)
    world.rounds()
    for job_id in (with_checkpoint, without):
        world.store.transition(job_id, JobState.queued, "")
    world.rounds(2)
    assert world.cluster.requests[world.trainer(with_checkpoint)].resume
    assert not world.cluster.requests[world.trainer(without)].resume
    assert not (Path(world.job(without).run_dir) / "spec.yaml").exists()


def test_a_coordinator_that_comes_back_takes_up_every_job_where_it_is(world: World) -> None:
    starting = world.submit(1)
    world.rounds()  # the state is written, the trainer not made
    world.restart()
    world.rounds()
    assert ("start", world.trainer(starting)) in world.cluster.calls
    running = world.running()
    world.restart()
    world.log(running, {"event": "progress", "step": 4, "steps": 10, "loss": 1.0})
    world.ended(running, {"event": "finished", "steps": 10})
    world.rounds()
    assert world.state(running) is JobState.finished
    assert world.kinds(running).count("progress") == 1


def test_a_last_event_that_was_taken_in_before_a_crash_still_ends_the_job(world: World) -> None:
    job_id = world.running()
    world.log(job_id, {"event": "finished", "steps": 10, "test_accuracy": 0.5})
    world.rounds()  # the log is read; the trainer has not returned yet
    world.restart()
    world.cluster.trainers.clear()  # and the cluster has forgotten it
    world.rounds()
    assert world.state(job_id) is JobState.finished


def test_a_coordinator_killed_as_a_job_begins_to_run_finds_it_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.submit()
    world.rounds(2)
    transition = world.store.transition

    def killed(job: str, to: JobState, *given: Any, **named: Any) -> Job:
        if to is JobState.running:
            raise KeyboardInterrupt
        return transition(job, to, *given, **named)

    world.log(job_id, {"event": "started", "steps": 10, "step": 0})
    with monkeypatch.context() as patched:
        patched.setattr(world.store, "transition", killed)
        with pytest.raises(KeyboardInterrupt):
            world.rounds()
    world.restart()
    world.log(job_id, {"event": "progress", "step": 1, "steps": 10, "loss": 1.0})
    world.rounds(2)
    assert world.kinds(job_id) == ["queued", "starting", "started", "running", "progress"]
    assert world.state(job_id) is JobState.running


def test_trouble_with_one_job_does_not_stop_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = world.submit(1), world.submit(1)
    world.rounds()
    make = RunRequests.make

    def failing(self: RunRequests, job: Job, submission: Submission, *given: Any, **named: Any) -> RunRequest:
        if job.id == bad:
            raise OSError("disk full")
        return make(self, job, submission, *given, **named)

    monkeypatch.setattr(RunRequests, "make", failing)
    world.rounds(3)
    assert world.trainer(good) in world.cluster.requests
    assert world.kinds(bad).count("warning") == 1


def test_a_job_that_starts_while_the_coordinator_is_replaced_can_be_resumed(world: World) -> None:
    """What its trainer has written by then is by what its run is known."""
    job_id = world.submit()
    world.rounds(2)
    written = Path(world.job(job_id).run_dir) / "spec.yaml"
    written.write_text("the run's")
    world.restart()
    world.rounds(2)
    assert world.state(job_id) is JobState.starting and written.exists()


def test_a_hanging_supervisor_is_told_without_the_clock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rounds()
    now = time.time()
    for moved in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda moved=moved: now + moved)
        assert 0 <= world.supervisor.health.silent < 60
    since = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: since + 100)
    assert world.supervisor.health.silent >= 100
    world.rounds()
    assert world.supervisor.health.silent == 0


def test_a_job_that_fits_in_sum_and_on_no_node_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now)
    no_room = {"event": "failed"} | NoRoomError("no room", setting="placement").as_event()
    large, small = world.submit(cpus=4), world.submit(cpus=2)
    waits = world.job(large).queued
    for _ in range(2):  # once somebody else may have been quicker
        world.rounds(2)
        assert (world.state(large), world.state(small)) == (JobState.starting, JobState.queued)
        world.ended(large, no_room)
    world.rounds(2)
    assert (world.state(large), world.state(small)) == (JobState.queued, JobState.starting)
    assert world.job(large).queued == waits  # it has waited all the time
    world.ended(small, {"event": "finished", "steps": 10})
    world.rounds(2)
    assert world.state(large) is JobState.starting  # there is more room than before
    for pause in (20 / 12, 40 / 12):
        world.ended(large, no_room)
        world.rounds(3)
        assert world.state(large) is JobState.queued
        now += pause + 0.01
        world.rounds(2)
        assert world.state(large) is JobState.starting


def test_a_job_whose_request_cannot_be_made_fails(world: World) -> None:
    """Such as one whose specification a newer release refuses: it would hold its room for ever."""
    job_id = world.submit(files={"a.py": "", "a.py/b.py": ""})
    world.rounds(2)
    assert world.state(job_id) is JobState.failed
    error = world.job(job_id).error
    assert error is not None and "a.py/b.py" in error["message"]


def test_a_job_that_was_refused_room_does_not_drain_the_cluster(world: World) -> None:
    """It fits in sum once all is free, which it never is while small ones come; what is free is for them."""
    no_room = {"event": "failed"} | NoRoomError("no room", setting="placement").as_event()
    large, *small = world.submit(cpus=4), *(world.submit(cpus=1.5) for _ in range(4))
    for _ in range(2):
        world.rounds(2)
        world.ended(large, no_room)
    world.rounds(2)
    assert [world.state(one) for one in small[:3]] == [JobState.starting, JobState.starting, JobState.queued]
    world.ended(small[0], {"event": "finished", "steps": 10})
    world.rounds(2)
    assert (world.state(large), world.state(small[2])) == (JobState.queued, JobState.starting)


@pytest.mark.parametrize("place", ["code/my.py", "code/pkg", "code", ""])
def test_a_link_that_a_job_left_is_not_written_through(world: World, place: str) -> None:
    """A resumed job's files are laid down anew, by a coordinator who may write more than the job's code."""
    job_id = world.submit(files={"my.py": "x = 1\n", "pkg/deep.py": "y = 2\n"})
    world.rounds(2)
    world.ended(job_id, FAILED)
    world.rounds()
    path, elsewhere = Path(world.job(job_id).run_dir) / place, world.folder / "elsewhere"
    path.rename(elsewhere)
    for file in (elsewhere, *elsewhere.rglob("*.py")):
        if file.is_file():
            file.write_text("precious")
    path.symlink_to(elsewhere)
    world.store.transition(job_id, JobState.queued, "")
    world.rounds(2)
    for file in (elsewhere, *elsewhere.rglob("*.py")):
        assert file.is_dir() or file.read_text() == "precious"
    if place == "code/my.py":
        assert world.state(job_id) is JobState.starting
        assert not path.is_symlink() and path.read_text() == "x = 1\n"
    else:
        error = world.job(job_id).error
        assert world.state(job_id) is JobState.failed
        assert error is not None and error["code"] == "bad_input" and "link" in error["message"]


NO_ROOM = {"event": "failed"} | NoRoomError("no room", setting="placement").as_event()


def refused(world: World, count: int) -> list[str]:
    """Return jobs of two cores that found no room twice, and rest."""
    jobs = [world.submit(cpus=2) for _ in range(count)]
    for job in jobs:
        for _ in range(2):
            world.rounds(2)
            assert world.state(job) is JobState.starting
            world.ended(job, NO_ROOM)
    world.rounds()
    return jobs


def test_jobs_that_were_refused_room_try_one_at_a_time_and_after_all_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: 100.0)
    first = world.submit(cpus=2)
    world.rounds(2)
    misfits = refused(world, 2)
    others = [world.submit(cpus=1) for _ in range(3)]
    world.rounds()
    assert [world.state(job) for job in others] == [JobState.starting, JobState.starting, JobState.queued]
    world.ended(first, {"event": "finished", "steps": 10})  # by which both may try again
    world.rounds(2)
    assert world.state(others[2]) is JobState.starting
    assert {world.state(job) for job in misfits} == {JobState.queued}  # one core is left
    world.cluster.cpus += 4
    for trying, waiting in (misfits, reversed(misfits)):
        world.rounds(2)
        assert (world.state(trying), world.state(waiting)) == (JobState.starting, JobState.queued)
        world.ended(trying, NO_ROOM)


def test_a_job_that_was_refused_room_overtakes_nobody_who_came_before_it(world: World) -> None:
    early, large, late = [world.submit(cpus) for cpus in (2, 3, 2)]
    for room, job in ((4, large), (2, early)):
        order = start_order(world.store, Capacity(4, 0, room, 0), refused={early, late})
        assert [starting.id for starting in order.starting] == [job]


def test_however_many_jobs_rest_the_next_one_starts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(queue, "AT_ONCE", 2)
    refused(world, 3)
    following = world.submit(cpus=1)
    world.rounds()
    assert world.state(following) is JobState.starting


def stop(world: World, job_id: str) -> None:
    """Do as the service does when somebody stops a job that is about to start."""
    world.store.transition(
        job_id, JobState.stopping, "", only_from=JobState.starting, stop_requested="graceful"
    )


def test_who_watches_is_told_of_a_start_that_meets_a_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.submit()
    world.rounds(2)
    append = world.store.append

    def stopped_before(job: str, events: Any, position: int) -> Job:
        if any(event["event"] == "started" for event in events):
            stop(world, job)
            world.changed.clear()
        return append(job, events, position)

    monkeypatch.setattr(world.store, "append", stopped_before)
    world.log(job_id, {"event": "started", "steps": 10, "step": 0})
    world.rounds(1)
    assert "started" in world.kinds(job_id) and job_id in world.changed
    assert "warning" not in world.kinds(job_id)


def test_a_job_that_is_stopped_while_it_finds_no_room_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.submit()
    world.rounds(2)
    world.ended(job_id, {"event": "failed", **NoRoomError("no room").as_event()}, logged=False)
    over = queue.Rests.over

    def stopped_before(rests: queue.Rests, job: Job, no_room: bool) -> None:
        if not world.job(job_id).stop_requested:
            stop(world, job_id)
        over(rests, job, no_room)

    monkeypatch.setattr(queue.Rests, "over", stopped_before)
    world.rounds(3)
    assert world.state(job_id) is JobState.stopped and "warning" not in world.kinds(job_id)
    assert world.job(job_id).detail == STOPPED_WAITING
