"""Stochastic gradient runs follow the integrated flow of linear networks, the closer the shorter the step."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lowdimfa.errors import InputError
from lowdimfa.theory import LinearFeedback, LinearState, LinearTask, Trajectory, descend, integrate

pytestmark = pytest.mark.slow

VALUES = (1.5, 1.0, 0.6)
HORIZON = 20.0
BATCH = 16

RULES = {
    "fixed": LinearFeedback("fixed", decay=0.02),
    "q": LinearFeedback("q", decay=0.02),
    "q-and-p by targets": LinearFeedback("q-and-p", decay=0.02),
    "q-and-p by errors": LinearFeedback("q-and-p", "errors", decay=0.02),
}


def networks(count: int) -> tuple[LinearTask, LinearState]:
    """Several copies of one network, to learn from different samples."""
    generator = torch.Generator().manual_seed(7)
    task = LinearTask.random(VALUES, 6, 5, generator)
    state = LinearState.random(task, 6, 2, 0.3, generator)
    return LinearTask.stack([task] * count), LinearState.stack([state] * count)


def learn(feedback: LinearFeedback, rate: float, count: int) -> Trajectory:
    task, state = networks(count)
    steps = round(HORIZON / rate)
    return descend(
        task,
        feedback,
        state,
        learning_rate=rate,
        records=[round(steps * part / 10) for part in range(11)],
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(1),
    )


@cache
def flow_of(name: str) -> Trajectory:
    """Return the flow, at the times of the recorded steps."""
    task, state = networks(1)
    times = [HORIZON * part / 10 for part in range(11)]
    return integrate(task, RULES[name], state, times, 0.2)


def root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def fluctuations(runs: Trajectory) -> float:
    """Return how far single runs are from their mean."""
    return root_mean_square(runs.modes - runs.modes.mean(1, keepdim=True))


@pytest.mark.parametrize("name", RULES)
def test_stochastic_runs_follow_the_flow(name: str) -> None:
    """Their mean is off by a part of ``η s`` and by the error of a mean of 24 runs, less than rules differ by.

    A gradient's covariance is a few squares of the error over the batch, and a mode relaxes in a time of about
    ``1/s``, so that a mode fluctuates by the order of ``s √(η / batch)``.
    """
    rate, count = 0.02, 24
    runs = learn(RULES[name], rate, count)
    noise = fluctuations(runs)
    assert 0.02 < noise / (VALUES[0] * (rate / BATCH) ** 0.5) < 1
    tolerance = 0.2 * VALUES[0] * rate + 3 * noise / count**0.5
    flows = {other: flow_of(other) for other in RULES}
    assert all(torch.allclose(runs.times, flow.times) for flow in flows.values())
    mean = runs.modes.mean(1)
    distance = {other: root_mean_square(mean - flow.modes[:, 0]) for other, flow in flows.items()}
    assert [other for other in RULES if distance[other] < tolerance] == [name]


@pytest.mark.parametrize("name", RULES)
def test_a_shorter_step_comes_closer(name: str) -> None:
    """A quarter of the step halves the fluctuations (within the error of estimating them from 16 runs)."""
    coarse, fine = (fluctuations(learn(RULES[name], rate, 16)) for rate in (0.08, 0.02))
    assert 0.35 < fine / coarse < 0.7


def test_refusals() -> None:
    task, state = networks(1)
    generator = torch.Generator()
    with pytest.raises(InputError, match="positive numbers"):
        descend(task, RULES["q"], state, learning_rate=0.0, records=[1], batch_size=1, generator=generator)
    with pytest.raises(InputError, match="records"):
        descend(task, RULES["q"], state, learning_rate=0.1, records=[2, 1], batch_size=1, generator=generator)
