"""Stochastic gradient descent on sampled data by the same rules, to hold against the integrated flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowdimfa.errors import InputError
from lowdimfa.theory.flow import Recorder, Trajectory, changes, decay_at
from lowdimfa.theory.system import LinearFeedback, LinearState, LinearTask


def descend(
    task: LinearTask,
    feedback: LinearFeedback,
    state: LinearState,
    *,
    learning_rate: float,
    records: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
) -> Trajectory:
    """Train on mini-batches ``x ~ Normal(0, I)``, ``y = Σ x``; step ``k`` is recorded at time ``k · learning_rate``.

    As the learning rate goes to 0 the trajectory goes to that of `lowdimfa.theory.integrate`: the bias is
    proportional to the learning rate ``η``, the fluctuations to ``√(η / batch_size)``.

    Parameters
    ----------
    state
        Weights at the start; batched tasks draw their own data for each network.
    records
        Numbers of the steps after which to record, increasing from 0 on; the last one ends the training.
    batch_size
        Samples per step.

    Raises
    ------
    InputError
        A number isn't positive.
    NotFiniteError
        The learning rate is too high.
    """
    wanted = list(records)
    if learning_rate <= 0 or batch_size < 1:
        raise InputError(
            "descend", f"learning_rate {learning_rate}, batch_size {batch_size}", "positive numbers"
        )
    if not wanted or wanted[0] < 0 or sorted(set(wanted)) != wanted:
        raise InputError("records", f"{wanted[:4]} …", "increasing numbers of steps from 0 on")
    teacher, recorder = task.teacher, Recorder(task)
    shape = (*teacher.shape[:-2], batch_size, teacher.shape[-1])
    step = 0
    for due in wanted:
        while step < due:
            inputs = torch.randn(shape, generator=generator, dtype=teacher.dtype)
            decay = decay_at(feedback, step * learning_rate)
            change = _from_samples(state, feedback, decay, inputs, inputs @ teacher.mT)
            pairs = zip(state.tensors(), change.tensors(), strict=True)
            state = LinearState(*(old + learning_rate * new for old, new in pairs))
            step += 1
        recorder.record(step * learning_rate, state)
    return recorder.trajectory(state)


def _from_samples(
    state: LinearState, feedback: LinearFeedback, decay: float, inputs: Tensor, targets: Tensor
) -> LinearState:
    """Return the update of one mini-batch: the rules on its own covariances."""
    errors = targets - inputs @ state.w1.mT @ state.w2.mT
    count = inputs.shape[-2]
    correlation = None
    if feedback.rule == "q-and-p":
        seen = targets if feedback.drive == "targets" else errors
        correlation = (seen @ state.p.mT).mT @ seen / count
    return changes(state, feedback, decay, errors.mT @ inputs / count, correlation)
