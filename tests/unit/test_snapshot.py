"""Snapshots: a block's whole state comes back bit for bit, and no more steps are lost than may be."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdimfa.block_module import BlockModule
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.encoding import State
from lowdimfa.models import cnn, mlp
from lowdimfa.network import DecoupledNetwork, decouple
from lowdimfa.services.block.snapshot import Snapshot, SnapshotShelf
from lowdimfa.stage import Stage

STEPS, BATCH, SIZE = 6, 8, 6
SOON = 0.02
"""Patience, in seconds, of waits that end without what they wait for."""


def tied() -> nn.Sequential:
    first, second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(SIZE, 16), nn.Linear(16, 4))


MODELS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = {
    "mlp": (lambda: mlp(SIZE, 8, 4, 4), (SIZE,), 3),
    "cnn": (lambda: cnn(1, [4, 4], 4, 8), (1, 8, 8), 3),
    "tied": (tied, (SIZE,), 2),
}


def network(model: str, precision: Any, q_rule: Any, p_rule: Any = "fixed") -> DecoupledNetwork:
    make, shape, blocks = MODELS[model]
    update = UpdateConfig(
        FactoryConfig("torch.optim.AdamW", {"lr": 3e-3}),
        FactoryConfig("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.01}),
    )
    torch.manual_seed(1)
    return decouple(
        make(),
        torch.zeros(2, *shape),
        blocks=blocks,
        total_steps=STEPS + 1,
        feedback=FeedbackConfig(q_rule=q_rule, p_rule=p_rule, probe_every=2),
        training=TrainingConfig(total_steps=STEPS + 1, update=update, precision=precision),
    )


def train(trained: DecoupledNetwork, model: str, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, *MODELS[model][1], generator=generator)
        targets = torch.randint(0, 4, (BATCH,), generator=generator)
        trained.train_step(step, [(inputs, targets)])


def assert_same_state(found: Stage, expected: Stage) -> None:
    assert found.state().scalars == expected.state().scalars
    ours, theirs = found.state().tensors, expected.state().tensors
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert bits(ours[name]) == bits(value), name


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize(
    ("model", "precision", "rules"),
    [
        ("mlp", "fp32", ("hebbian",)),
        ("mlp", "bf16", ("probed",)),
        ("mlp", "fp32", ("readout", "oja")),
        ("cnn", "fp32", ("hebbian",)),
        ("cnn", "bf16", ("fixed",)),
        ("tied", "fp32", ("hebbian",)),
    ],
)
def test_a_snapshot_gives_a_new_stage_the_same_state_and_future(
    model: str, precision: str, rules: tuple[str, ...]
) -> None:
    old, new = network(model, precision, *rules), network(model, precision, *rules)
    train(old, model, range(STEPS))
    for before, after in zip(old.stages, new.stages, strict=True):
        shelf = SnapshotShelf(1)
        shelf.offer(before, STEPS)
        snapshot = shelf.fetch(-1, SOON)
        assert snapshot is not None and snapshot.step == STEPS
        travelled: Snapshot = pickle.loads(pickle.dumps(snapshot))
        travelled.restore(after)
        assert_same_state(after, before)
    for one in (old, new):
        train(one, model, range(STEPS, STEPS + 1))
    for before, after in zip(old.stages, new.stages, strict=True):
        assert_same_state(after, before)


def test_a_snapshot_is_the_state_of_its_step_whatever_comes_after() -> None:
    trained, then = network("mlp", "fp32", "hebbian"), network("mlp", "fp32", "hebbian")
    train(trained, "mlp", range(2))
    train(then, "mlp", range(2))
    shelves = [SnapshotShelf(1) for _ in trained.stages]
    for shelf, stage in zip(shelves, trained.stages, strict=True):
        shelf.offer(stage, 2)
    train(trained, "mlp", range(2, 5))
    for shelf, stage, expected in zip(shelves, trained.stages, then.stages, strict=True):
        snapshot = shelf.fetch(-1, SOON)
        assert snapshot is not None
        snapshot.restore(stage)
        assert_same_state(stage, expected)


class Counter(Stage):
    """Stands for a block: its state is the number of steps that it has applied."""

    def __init__(self) -> None:
        self.applied, self.sites, self.module = 0, [], BlockModule([])

    def state(self) -> State:
        return State({"applied": torch.tensor(self.applied)}, {"applied": self.applied})


@contextmanager
def fetching(shelf: SnapshotShelf, turn: threading.Semaphore) -> Iterator[list[Snapshot]]:
    """Keep snapshots in a thread, one each time that the semaphore lets it."""
    kept: list[Snapshot] = []
    closed = threading.Event()

    def keep() -> None:
        while not closed.is_set():
            turn.acquire()
            snapshot = shelf.fetch(kept[-1].step if kept else -1, 0.005)
            if snapshot is not None:
                kept.append(snapshot)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield kept
    finally:
        closed.set()
        turn.release()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(("every", "rest"), list(itertools.product((1, 2, 5), (1, 2, 3))))
def test_no_more_steps_than_every_can_be_lost_however_slow_the_fetcher_is(every: int, rest: int) -> None:
    """The fetcher gets a turn only when the block gives it one, ``rest`` of them each time that it has to wait."""
    shelf, block, turns = SnapshotShelf(every), Counter(), threading.Semaphore(0)
    waits = 0
    with fetching(shelf, turns) as kept:
        shelf.offer(block, 0)
        while block.applied < 4 * every + 3:
            while not shelf.settled(0):
                waits += 1
                turns.release(rest)
                shelf.settled(SOON)
            block.applied += 1
            steps = [snapshot.step for snapshot in kept]
            assert steps and steps[-1] >= block.applied - every
            assert steps == list(range(0, block.applied, every))[: len(steps)]
            shelf.offer(block, block.applied)
    assert waits
    assert [snapshot.scalars["applied"] for snapshot in kept] == [snapshot.step for snapshot in kept]


def test_a_block_waits_for_its_last_snapshot_to_be_kept_and_no_longer_than_its_patience() -> None:
    shelf, block = SnapshotShelf(1), Counter()
    assert shelf.settled(0)
    shelf.offer(block, 0)
    assert not shelf.settled(SOON)
    assert shelf.fetch(-1, SOON) is not None
    assert not shelf.settled(SOON)  # fetched, but nobody has said that it was kept
    assert shelf.fetch(0, SOON) is None
    assert shelf.settled(0)


def test_only_every_so_many_steps_a_snapshot_is_due() -> None:
    shelf, block = SnapshotShelf(3), Counter()
    for step in (1, 2, 4, 5):
        shelf.offer(block, step)
        assert shelf.fetch(-1, 0) is None and shelf.settled(0)
    shelf.offer(block, 6)
    snapshot = shelf.fetch(-1, 0)
    assert snapshot is not None and snapshot.step == 6


def test_a_snapshot_that_a_later_one_has_overtaken_is_not_given() -> None:
    shelf, block = SnapshotShelf(1), Counter()
    for block.applied in (0, 1):
        shelf.offer(block, block.applied)
    snapshot = shelf.fetch(-1, 0)
    assert snapshot is not None and snapshot.scalars == {"applied": 1}


def test_a_fetcher_waits_for_the_next_snapshot() -> None:
    shelf, block = SnapshotShelf(1), Counter()
    found: list[Snapshot | None] = []
    thread = threading.Thread(target=lambda: found.append(shelf.fetch(-1, 10)))
    thread.start()
    shelf.offer(block, 0)
    thread.join(10)
    assert found[0] is not None and found[0].step == 0
