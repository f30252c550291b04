"""What queued jobs say that they wait for: no longer than it is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import World

from lowdimfa.errors import NoRoomError
from lowdimfa.services.coordinator import supervisor as supervisor_module
from lowdimfa.services.coordinator.jobs import JobState
from lowdimfa.services.coordinator.queue import REFUSED, start_order
from lowdimfa.services.coordinator.runner import Capacity

NO_ROOM = {"event": "failed"} | NoRoomError("no room", setting="placement").as_event()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def details(world: World, *jobs: str) -> list[str]:
    return [world.job(job).detail for job in jobs]


def test_who_is_behind_another_again_says_nothing_of_its_own(world: World) -> None:
    early = world.submit(7)
    world.store.transition(early, JobState.stopped, "")
    world.running()
    second, large, lost = world.submit(4), world.submit(6), world.submit(3)
    world.store.describe(lost, "the trainer's process was lost; begins anew")
    world.rounds()
    waits, never, _ = details(world, second, large, lost)
    assert waits == "waits for 4 CPUs: 2 of 4 are free" and "the whole cluster has 4" in never
    world.cluster.away = "no route"
    world.rounds()
    assert details(world, second) == ["the cluster can't be reached: no route"]
    world.cluster.away, world.cluster.cpus = "", 8
    world.store.transition(early, JobState.queued, "")  # it has the place of its submission
    world.restart()  # instead of waiting for the pause between attempts to pass
    world.rounds(2)
    assert details(world, early, second, large) == ["waits for 7 CPUs: 6 of 8 are free", "", ""]
    assert details(world, lost) == ["the trainer's process was lost; begins anew"]
    assert len(world.store.events(second, 0, 100)) == 4  # each word once


def test_a_job_that_was_refused_room_says_so_again_when_the_cluster_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now)
    job = world.submit(2)
    for rested in (0.0, 0.0, 1.0):
        now += rested
        world.rounds(2)
        assert world.state(job) is JobState.starting
        world.ended(job, NO_ROOM)
        world.rounds()
    assert world.job(job).detail == "no room"
    world.cluster.away = "no route"
    world.rounds()
    assert "no route" in world.job(job).detail
    world.cluster.away = ""
    now += 0.9
    world.rounds(2)
    assert (world.state(job), world.job(job).detail) == (JobState.queued, REFUSED)


def test_a_refused_job_whose_turn_others_have_does_not_go_on_about_what_is_free(world: World) -> None:
    trying, waiting = world.submit(2), world.submit(2)
    world.store.transition(trying, JobState.starting, "")
    world.store.describe(waiting, "waits for 2 CPUs: 1 of 4 are free")
    order = start_order(world.store, Capacity(4, 0, 4, 0), refused={trying, waiting})
    assert not order.starting and [(job.id, reason) for job, reason in order.waiting] == [(waiting, REFUSED)]
