"""A block is lost in the middle of a run and built anew: the others go on with it, and nothing of the run is lost."""

from __future__ import annotations

import gc
import secrets
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rpc_helpers import eventually
from specifications import specification
from thread_fleet import ThreadFleet, thread_fleet

from lowdimfa.errors import PeerError
from lowdimfa.services.block import worker
from lowdimfa.services.block.building import Own, Source, build_stage
from lowdimfa.services.block.snapshot import Snapshot
from lowdimfa.services.block.worker import BlockWorker
from lowdimfa.services.rpc.security import Security
from lowdimfa.tickets import Ticket

STEPS = 8


class Keeper:
    """Keeps every block's newest snapshot in threads of this process, as the trainer does outside the blocks'."""

    def __init__(self, workers: list[BlockWorker]) -> None:
        self.kept: dict[int, Snapshot] = {}
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._keep, args=(worker,)) for worker in workers]
        for thread in self._threads:
            thread.start()

    def _keep(self, worker: BlockWorker) -> None:
        index = worker.job.index
        while not self._closed.is_set():
            kept = self.kept.get(index)
            snapshot = worker.next_snapshot(-1 if kept is None else kept.step, 0.05)
            if snapshot is not None:
                self.kept[index] = snapshot

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()


class Interrupted(ThreadFleet):
    """Loses a block when its forward of a step begins, and goes on without what it had in memory."""

    def run_and_lose(self, lost: int, step: int) -> Keeper:
        """Run until the block is lost, and bring the others to rest as the trainer does."""
        keeper = Keeper(self.workers)
        reached, dead = threading.Event(), threading.Event()
        worker = self.workers[lost]
        forward = worker.runner.work.forward

        def die(ticket: Ticket, probe: bool) -> None:
            if ticket.step < step:
                return forward(ticket, probe)
            reached.set()
            dead.wait(60)
            raise PeerError("killed")

        worker.runner.work.forward = die  # type: ignore[method-assign]
        running = [self._pool.submit(one.run_steps, 0, STEPS) for one in self.workers]
        assert reached.wait(60)
        due = worker.status().applied_steps
        due -= due % worker.job.parsed().run.snapshot_every
        eventually(lambda: lost in keeper.kept and keeper.kept[lost].step >= due)
        head = len(self.workers) - 1
        through = None
        if lost != head:
            self.workers[head].halt(None)
            running[head].result(60)
            through = self.workers[head].published()
        for index in set(range(head)) - {lost}:
            self.workers[index].halt(through)
            running[index].result(60)
        keeper.close()  # not sooner: until they are at rest, blocks wait for their snapshots to be kept
        dead.set()
        assert isinstance(running[lost].exception(60), PeerError)
        return keeper

    def replace(self, lost: int, step: int, sources: list[Source]) -> None:
        """Build the lost block anew, connect all under a new identifier, and let all take their states."""
        run, security = secrets.token_hex(4), Security.loopback()
        old = self.workers[lost]
        old.close()

        def open_again(worker: BlockWorker) -> None:
            if worker.job.index == lost:
                self.workers[lost] = BlockWorker(replace(old.job, run=run), security, "127.0.0.1")
            else:
                worker.reopen(run, security, "127.0.0.1")

        self.each(open_again)
        self.connect()
        self.each(lambda worker: worker.load(step, sources[worker.job.index]))


def undisturbed(plain: dict[str, Any], run_dir: Path) -> dict[str, torch.Tensor]:
    plain = plain | {"run": plain["run"] | {"on_failure": "fail"}}
    with thread_fleet(plain, run_dir) as fleet:
        fleet.run(0, STEPS)
        return fleet.model_state()


def disturbed(
    plain: dict[str, Any],
    run_dir: Path,
    lost: int,
    step: int,
    check: Callable[[Keeper, dict[int, int]], None] = lambda keeper, applied: None,
) -> dict[str, torch.Tensor]:
    """Lose a block at a step, let it rejoin, and return the model at the end."""
    with thread_fleet(plain, run_dir, kind=Interrupted) as fleet:
        assert isinstance(fleet, Interrupted)
        keeper = fleet.run_and_lose(lost, step)
        applied = {worker.job.index: worker.status().applied_steps for worker in fleet.workers}
        check(keeper, applied)
        left = {steps for index, steps in applied.items() if index != lost}
        assert len(left) == 1 or lost == len(fleet.workers) - 1
        sources: list[Source] = [Own()] * len(fleet.workers)
        sources[lost] = keeper.kept[lost]
        onward = max(left)
        fleet.replace(lost, onward, sources)
        keeper = Keeper(fleet.workers)
        try:
            fleet.run(onward, STEPS)
        finally:
            keeper.close()
        return fleet.model_state()


def rejoining(every: int, model: str = "mlp", q_rule: str = "hebbian", **sections: Any) -> dict[str, Any]:
    run = {"on_failure": "rejoin", "snapshot_every": every}
    return specification(model, 3, q_rule, run=run, **sections)


OJA = {"feedback": {"p_rule": "oja", "error_dim": 3}}
FOLLOWED = {"feedback": {"source": "head_input", "p_rule": "pca", "error_dim": 5}}
NARROW = {"train": {"microbatches": 4, "window": 2}}


@pytest.mark.parametrize(
    ("q_rule", "sections", "lost"),
    [
        ("hebbian", {}, 0),
        ("hebbian", OJA, 2),
        ("hebbian", NARROW, 1),
        ("fixed", FOLLOWED, 0),
        ("fixed", FOLLOWED, 2),
        ("probed", {}, 0),
        ("probed", {}, 1),
        ("probed", {}, 2),
    ],
)
def test_a_block_that_rejoins_changes_no_bit(
    q_rule: str, sections: dict[str, Any], lost: int, tmp_path: Path
) -> None:
    """With a snapshot after each step and no staleness all blocks go back to the boundary before the loss."""
    plain = rejoining(1, q_rule=q_rule, **sections)
    found = disturbed(plain, tmp_path / "lossy", lost, 5)
    expected = undisturbed(plain, tmp_path / "whole")
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize(("lost", "step"), [(0, 3), (1, 7), (2, 7)])
def test_a_block_lacks_no_more_steps_than_its_snapshots_are_apart(
    lost: int, step: int, tmp_path: Path
) -> None:
    def check(keeper: Keeper, applied: dict[int, int]) -> None:
        assert applied == dict.fromkeys(range(3), step)
        assert step - keeper.kept[lost].step == step % 5 <= 5

    found = disturbed(rejoining(5), tmp_path, lost, step, check)
    assert all(bool(value.isfinite().all()) for value in found.values() if value.is_floating_point())


@pytest.mark.parametrize(("lost", "staleness"), [(0, 1), (1, 2)])
def test_with_staleness_too_the_blocks_that_are_left_rest_after_one_step(
    lost: int, staleness: int, tmp_path: Path
) -> None:
    def check(keeper: Keeper, applied: dict[int, int]) -> None:
        head = applied.pop(2)
        assert all(steps == head for index, steps in applied.items() if index != lost)
        assert 5 - staleness <= applied[lost] <= head <= 5
        assert keeper.kept[lost].step >= applied[lost] - 1

    disturbed(rejoining(1, train={"staleness": staleness}), tmp_path, lost, 5, check)


def test_a_block_that_goes_on_with_its_own_state_is_never_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a well-filled GPU there would be no room for it."""
    left: list[bool] = []

    def build(*arguments: Any) -> Any:
        left.append(before() is not None)
        return build_stage(*arguments)

    with thread_fleet(rejoining(5), tmp_path) as fleet:
        (block, *_), run = fleet.workers, secrets.token_hex(4)
        keeper = Keeper(fleet.workers)
        fleet.run(0, 2)
        keeper.close()
        tensors = block.state().tensors
        before = weakref.ref(block.stage)
        monkeypatch.setattr(worker, "build_stage", build)
        block.reopen(run, Security.loopback(), "127.0.0.1")
        block.stage.look_later = block.runner.work._look_later  # as on a GPU: they refer to each other
        gc.disable()  # it would come by chance
        try:
            block.load(2, Own())
        finally:
            gc.enable()
        after = block.stage.state().tensors
        assert left == [False]
        assert [name for name, value in tensors.items() if not torch.equal(after[name], value)] == []
        for name, value in block.state().tensors.items():  # a copy: who asked may have no such device
            assert value.data_ptr() != after[name].data_ptr() or not value.numel()
