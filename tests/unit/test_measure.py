from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowdimfa import measure
from lowdimfa.block import Block
from lowdimfa.build import build_stages
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.head import Head
from lowdimfa.measure import StageTime, make_step, measure_times
from lowdimfa.memory import StageMemory, measure_memory
from lowdimfa.partitioning import partition

BATCH = 5


class Clock:
    """Goes on when it is read, and as far as the work says that it takes: no other work of the machine is in it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=CLOCK.perf_counter))


class Slow(nn.Linear):
    """Takes so many seconds to go forward and backward."""

    forward_seconds, backward_seconds = 0.004, 0.008

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.pass_by(self.forward_seconds)
        output = super().forward(x)
        if output.requires_grad:
            output.register_hook(lambda gradient: CLOCK.pass_by(self.backward_seconds))  # type: ignore[no-untyped-call]
        return output


def network(
    feedback: FeedbackConfig, first: type[nn.Linear] = nn.Linear, staleness: int = 0
) -> tuple[list[Block], Head]:
    model = nn.Sequential(first(4, 6), nn.ReLU(), nn.Linear(6, 3))
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.01, "momentum": 0.9}))
    training = TrainingConfig(total_steps=100, microbatches=2, staleness=staleness, update=update)
    return build_stages(partition(model, 2, torch.rand(2, 4)), feedback, training, "classification")


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(BATCH, 4), torch.randint(0, 3, (BATCH,))) for _ in range(count)]


@pytest.mark.parametrize("staleness", [0, 1])
def test_every_piece_of_work_is_timed_where_it_is_done(staleness: int) -> None:
    feedback = FeedbackConfig(q_rule="hebbian")
    stages, data = network(feedback, Slow, staleness), batches()
    before = torch.get_rng_state()
    block, head = measure_times(*stages, feedback, data, 2, staleness)
    assert torch.equal(before, torch.get_rng_state())
    assert block.forward >= Slow.forward_seconds
    assert block.update >= Slow.backward_seconds
    assert 0 < block.step < Slow.forward_seconds
    assert 0 < head.forward < Slow.forward_seconds
    assert head.update == 0
    assert head.step > 0


def test_a_step_counts_for_all_of_its_microbatches() -> None:
    assert StageTime(1.0, 2.0, 8.0).per_microbatch(4) == 5.0


def test_a_probe_counts_as_often_as_it_comes() -> None:
    every_step, seldom = (FeedbackConfig(q_rule="probed", probe_every=interval) for interval in (1, 4))
    often, _ = measure_times(*network(every_step, Slow), every_step, batches(), 2, 0)
    rare, _ = measure_times(*network(seldom, Slow), seldom, batches(), 2, 0)
    # A probe is a second forward pass: in one of 2 micro-batches, or in one of 8.
    assert often.forward >= Slow.forward_seconds * 1.5
    assert Slow.forward_seconds * 1.125 <= rare.forward < often.forward


def memory_of(feedback: FeedbackConfig, staleness: int) -> list[StageMemory]:
    blocks, head = network(feedback)
    make_step(blocks, head, feedback, batches())
    inputs = torch.rand(BATCH, 4)
    return [
        measure_memory(blocks[0], inputs, staleness),
        measure_memory(head, torch.rand(BATCH, 6), staleness),
    ]


def test_memory_counts_every_storage_once_and_weights_apart() -> None:
    block, head = memory_of(FeedbackConfig(q_rule="hebbian", tap="identity"), staleness=2)
    weights, q = 4 * (4 * 6 + 6), 4 * 6 * 3
    # of the input, and the ReLU's output, which is the tap's value as well
    assert block == StageMemory(
        weights, weights + q, weights + q, q, kept=4 * BATCH * (4 + 6), stale=2 * weights
    )
    weights = 4 * (6 * 3 + 3)
    assert head == StageMemory(weights, weights, weights, 0, kept=4 * BATCH * (6 + 3), stale=0)
    assert block.total(3) == block.total(0) + 3 * block.kept
    assert block.total(0) == 5 * block.weights + 3 * q


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_block_that_learns_nothing_keeps_nothing_of_a_forward(frozen: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model[frozen].requires_grad_(False)
    feedback = FeedbackConfig()
    update = UpdateConfig(FactoryConfig("torch.optim.SGD", {"lr": 0.01, "momentum": 0.9}))
    training = TrainingConfig(total_steps=100, microbatches=2, staleness=0, update=update)
    (block,), head = build_stages(partition(model, 2, torch.rand(2, 4)), feedback, training, "classification")
    make_step([block], head, feedback, batches())
    found = measure_memory(block, torch.rand(BATCH, 4), 2)
    assert (found.kept == 0) == (frozen == 0)
    assert found.weights == 4 * (4 * 6 + 6)
    assert measure_memory(head, torch.rand(BATCH, 6), 2).kept > 0


def test_a_normalised_tap_keeps_more_and_fixed_feedback_has_no_gradient() -> None:
    normalised, _ = memory_of(FeedbackConfig(q_rule="fixed", tap="normalised"), staleness=0)
    identity, _ = memory_of(FeedbackConfig(q_rule="fixed", tap="identity"), staleness=0)
    assert normalised.kept == identity.kept + 4 * BATCH * (6 + 2)  # the normalised value, mean and deviation
    assert identity.gradients == identity.weights
