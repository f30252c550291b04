"""Time to a stated test score on real data: training alone is timed, evaluation is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.throughput.networks import Network
from benchmarks.throughput.places import Place
from benchmarks.throughput.process import Answer, WorkerError
from benchmarks.throughput.registry import LIMIT
from benchmarks.throughput.systems import OURS, System, start, stop

LEAD = 2
ANSWER_SECONDS = 1800.0


@dataclass
class Course:
    """How far a system has come.

    Attributes
    ----------
    seconds
        Its steps, with the filling and draining of its pipeline for each evaluation, where it drains.
    steady_seconds
        As many steps, at the pace of the steady state.
    steps
        How many.
    score
        At the last evaluation; None before the first.
    failure
        Why it goes no further.
    """

    seconds: float = 0.0
    steady_seconds: float = 0.0
    steps: int = 0
    score: float | None = None
    failure: str = ""

    def go_on(self, system: System, network: Network) -> None:
        """Train some steps and look at the test split."""
        count = network.steps_between - LEAD
        try:
            answers = system.ask("steps", ANSWER_SECONDS, lead=LEAD, count=count)
            found = system.ask("evaluate", ANSWER_SECONDS)
        except WorkerError as error:
            self.failure = str(error)
            return
        steps = answers[0]["steps"]
        steady = max(answer["seconds"] for answer in answers) / count * steps
        self.steady_seconds += steady
        self.seconds += max(answer.get("whole_seconds", steady) for answer in answers)
        self.steps += steps
        self.score = next(score_of(one, network) for one in found if one["loss"] is not None)

    def so_far(self) -> str:
        """Return it in a few words."""
        score = "failed" if self.score is None else f"{self.score:.4g}"
        return f"{score} in {self.steps} steps, {self.seconds:.0f} s"

    def described(self, reached: bool) -> dict[str, Any]:
        """Return it as a part of the result; times are None where the score was not reached."""
        if self.failure:
            return {"failure": self.failure}
        return {
            "seconds": self.seconds if reached else None,
            "steady_seconds": self.steady_seconds if reached else None,
            "steps": self.steps if reached else None,
            "score": self.score,
        }


def score_of(evaluation: Answer, network: Network) -> float:
    """Return the perplexity or accuracy of an evaluation."""
    return math.exp(evaluation["loss"]) if network.perplexity else float(evaluation["accuracy"])


def reaches(score: float | None, target: float, network: Network) -> bool:
    """Return whether a score is as good as a target."""
    if score is None:
        return False
    return score <= target if network.perplexity else score >= target


def usual_competitors(names: Sequence[str]) -> list[str]:
    """Return those of the measured systems whose time to a score is of interest: not those that others beat."""
    ours = [name for name in names if name.startswith(f"{OURS}1")]
    singles = [name for name in names if name.startswith("single-")][-2:]
    rest = [name for name in names if not name.startswith((OURS, "single-", "gpipe", "interleaved", LIMIT))]
    return ours + singles + rest


def time_to_target(
    target: float,
    names: Sequence[str],
    network: Network,
    blocks: int,
    place: Place,
    overrides: Sequence[str],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Train systems on real data until each reaches a test score.

    They take turns, `Network.steps_between` steps each, so that a machine that slows down does so for all.

    Returns
    -------
    dict
        By system, what `Course.described` returns.
    """
    report(f"training to {network.score_name} {target:g} on real data: {', '.join(names)}")
    systems = start(names, network, blocks, place, overrides, real=True)
    courses = {system.name: Course(failure=system.failure) for system in systems}
    try:
        racing = list(systems)
        while racing:
            for system in racing:
                if not courses[system.name].failure:
                    courses[system.name].go_on(system, network)
            report("; ".join(f"{one.name} {courses[one.name].so_far()}" for one in racing))
            racing = [system for system in racing if _goes_on(courses[system.name], target, network)]
    finally:
        stop(systems)
    return {name: one.described(reaches(one.score, target, network)) for name, one in courses.items()}


def _goes_on(course: Course, target: float, network: Network) -> bool:
    done = reaches(course.score, target, network) or course.steps >= network.most_steps
    return not (done or course.failure)
