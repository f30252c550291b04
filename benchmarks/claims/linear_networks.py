"""The linear networks of claim C1: teachers, feedback, integration and stochastic gradient runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowdimfa.theory import (
    LinearFeedback,
    LinearState,
    LinearTask,
    Trajectory,
    aligned_start,
    closed_form_modes,
    descend,
    fixed_points,
    integrate,
    velocity,
)

INPUTS, HIDDEN, ERROR_DIM = 12, 24, 3
START_SCALE = 1e-4
ALIGNED_STRENGTH = 1e-4
STEP = 0.25
LEARNING_RATE, BATCH_SIZE = 0.05, 32
RECORDS = 48
DECAY = 0.005


@dataclass(frozen=True)
class Trial:
    """One kind of learning, and how long it is watched.

    Attributes
    ----------
    horizon
        Time at which the integrated flow ends: learned feedback forgets its start at the rate ``λ``.
    descent_horizon
        Time at which stochastic gradient descent ends; modes settle in a time of about 10, and then fluctuate.
    """

    feedback: LinearFeedback
    horizon: float = 1200.0
    descent_horizon: float = 200.0


VERBATIM = {
    "fixed": Trial(LinearFeedback("fixed", decay=DECAY), horizon=600.0),
    "Q only": Trial(LinearFeedback("q", decay=DECAY)),
    "Q and P, by targets": Trial(LinearFeedback("q-and-p", "targets", decay=DECAY)),
}
"""The paper's rules as they are written: one constant decay of all weights but P."""

BY_ERRORS = {
    "Q and P, by errors": Trial(LinearFeedback("q-and-p", "errors", p_rate=0.4, decay=DECAY), horizon=600.0),
    "Q and P, by errors, W1 kept": Trial(
        LinearFeedback("q-and-p", "errors", p_rate=0.4, decay=0.25, first_layer_decays=False, anneal=150.0),
        descent_horizon=1200.0,
    ),
}
"""P driven by the output errors, as the paper has it for deep networks; the second one's decay is beyond the paper."""

SECOND = {
    "normative": Trial(LinearFeedback("normative", decay=DECAY)),
    "local": Trial(LinearFeedback("local", decay=DECAY)),
}
"""The rules of the paper's second generation, ``local`` with the same decay for its factors."""

WITHOUT_DECAY = {
    f"{name}, no decay": Trial(replace(trial.feedback, decay=0.0), horizon=300.0)
    for name, trial in VERBATIM.items()
}
"""What of the shortfall is the decay's doing."""


@dataclass(frozen=True)
class Teacher:
    """A teacher and what is tried on it."""

    singular_values: tuple[float, ...]
    outputs: int
    trials: dict[str, Trial]

    def configuration(self) -> dict[str, Any]:
        """Return everything that decides the figures, as plain data."""
        return asdict(self) | {
            "inputs": INPUTS,
            "hidden": HIDDEN,
            "error_dim": ERROR_DIM,
            "start_scale": START_SCALE,
            "aligned_strength": ALIGNED_STRENGTH,
            "integration": f"Runge-Kutta of order 4, step {STEP}, float64",
            "learning_rate": LEARNING_RATE,
            "batch_size": BATCH_SIZE,
        }


TEACHERS = {
    "r < d": Teacher((2.0, 1.8, 1.6, 1.4, 1.2, 1.0), 6, VERBATIM | BY_ERRORS | SECOND),
    "r = d": Teacher((2.0, 1.5, 1.0), 64, VERBATIM | SECOND | WITHOUT_DECAY),
}
"""A teacher whose rank ``d`` is above ``r``, where ``d = m``; and one whose rank is ``r``, far below ``m``."""


def networks(teacher: Teacher, seeds: int) -> tuple[LinearTask, LinearState]:
    """Return one random teacher and student for each seed, as a batch."""
    tasks, states = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        tasks.append(LinearTask.random(teacher.singular_values, INPUTS, teacher.outputs, generator))
        states.append(LinearState.random(tasks[-1], HIDDEN, ERROR_DIM, START_SCALE, generator))
    return LinearTask.stack(tasks), LinearState.stack(states)


def spread_times(horizon: float) -> list[int]:
    """Return 0 and numbers of descent steps that are evenly spread in the logarithm, up to a horizon."""
    last = round(horizon / LEARNING_RATE)
    spread = torch.logspace(1, torch.tensor(last).log10().item(), RECORDS, dtype=torch.float64)
    return sorted({0, last, *(round(float(value)) for value in spread)})


def learn(name: str, teacher: Teacher, seeds: int) -> list[dict[str, Any]]:
    """Return what each network does in each trial: flow, descent, stationary point, as plain data."""
    task, state = networks(teacher, seeds)
    runs: list[dict[str, Any]] = []
    for variant, trial in teacher.trials.items():
        feedback = trial.feedback
        times = [step * LEARNING_RATE for step in spread_times(trial.horizon)]
        flow = integrate(task, feedback, state, times, STEP)
        descent = _descend(task, feedback, state, trial.descent_horizon)
        constant = feedback.first_layer_decays and feedback.anneal is None
        point = fixed_points(task, feedback, state) if constant else None
        speed = relative_speed(flow.final, task, feedback, trial.horizon)
        for seed in range(seeds):
            runs.append(
                {
                    "teacher": name,
                    "variant": variant,
                    "seed": seed,
                    "flow": _plain(flow, task, seed),
                    "descent": _plain(descent, task, seed),
                    "stationary_modes": None
                    if point is None
                    else _rounded(point.modes[seed] / task.singular_values),
                    "relative_speed": _short(speed[seed]),
                }
            )
    return runs


def learn_aligned(name: str, teacher: Teacher, seeds: int) -> list[dict[str, Any]]:
    """Return flow and descent from an aligned start with fixed P, whose course in time has a closed form."""
    task, drawn = networks(teacher, seeds)
    state = aligned_start(task, drawn.p, ALIGNED_STRENGTH, HIDDEN)
    trial = VERBATIM["Q only"]
    descent = _descend(task, trial.feedback, state, trial.descent_horizon)
    flow = integrate(task, trial.feedback, state, descent.times.tolist(), STEP)
    modes, loss = closed_form_modes(task, drawn.p, ALIGNED_STRENGTH, DECAY, descent.times)
    closed = Trajectory(descent.times, modes, loss, descent.final)
    return [
        {
            "teacher": name,
            "variant": "Q only, aligned start",
            "seed": seed,
            "closed_form": _plain(closed, task, seed),
            "descent": _plain(descent, task, seed),
            "flow_distance": _short((flow.modes - modes)[:, seed].abs().max()),
            "descent_distance": _short((descent.modes - modes)[:, seed].square().mean().sqrt()),
        }
        for seed in range(seeds)
    ]


def relative_speed(state: LinearState, task: LinearTask, feedback: LinearFeedback, time: float) -> Tensor:
    """Return how much the weights change per unit of time, relative to their own norm; one value per network."""
    moving = velocity(state, task, feedback, time)

    def norm(part: LinearState) -> Tensor:
        squares = [tensor.square().sum((-2, -1)) for tensor in part.tensors()]
        return torch.stack(squares).sum(0).sqrt()

    return norm(moving) / norm(state)


def _descend(task: LinearTask, feedback: LinearFeedback, state: LinearState, horizon: float) -> Trajectory:
    return descend(
        task,
        feedback,
        state,
        learning_rate=LEARNING_RATE,
        records=spread_times(horizon),
        batch_size=BATCH_SIZE,
        generator=torch.Generator().manual_seed(0),
    )


def _plain(trajectory: Trajectory, task: LinearTask, seed: int) -> dict[str, Any]:
    """Return one network's trajectory: its course for the first seed, and its end for all."""
    relative = trajectory.modes[:, seed] / task.singular_values
    found: dict[str, Any] = {
        "final_modes": _rounded(relative[-1]),
        "final_loss": _short(trajectory.loss[-1, seed]),
        "start_loss": _short(trajectory.loss[0, seed]),
    }
    if seed == 0:
        found["times"] = _rounded(trajectory.times)
        found["modes"] = [_rounded(row) for row in relative]
    return found


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def _short(value: Tensor) -> float:
    return float(f"{float(value):.4g}")
