"""Time to a stated test accuracy on real data: training alone is timed, evaluation is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.throughput.networks import Network
from benchmarks.throughput.places import Place
from benchmarks.throughput.process import WorkerError
from benchmarks.throughput.systems import LAYERS, OURS, System, single_names, start, stop

STEPS_BETWEEN = 10
MOST_STEPS = 400
ANSWER_SECONDS = 600.0


def time_to_accuracy(
    target: float,
    network: Network,
    blocks: int,
    place: Place,
    overrides: Sequence[str],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Train this runtime, 1F1B and the strongest single process until each reaches an accuracy.

    This runtime at ``staleness: 1``, with the error at every block, and at every layer.

    The test split is looked at every `STEPS_BETWEEN` steps. This runtime's time has the filling and draining of its
    pipeline in each such portion.

    Returns
    -------
    dict
        By system: ``seconds`` and ``steps``, None where it did not get there in `MOST_STEPS` steps, and the last
        ``accuracy``; or ``failure``.
    """
    names = [f"{OURS}1", f"{OURS}1{LAYERS}", single_names(blocks, network.microbatches)[-2], "1f1b"]
    report(f"training to {100 * target:g} % on real data: {', '.join(names)}")
    systems = start(names, network, blocks, place, overrides, real=True)
    try:
        return {system.name: _train(system, target) for system in systems}
    finally:
        stop(systems)


def _train(system: System, target: float) -> dict[str, Any]:
    if system.failure:
        return {"failure": system.failure}
    seconds, steps, accuracy = 0.0, 0, 0.0
    try:
        while accuracy < target and steps < MOST_STEPS:
            answers = system.ask("steps", ANSWER_SECONDS, lead=0, count=STEPS_BETWEEN)
            seconds += max(answer.get("whole_seconds", answer["seconds"]) for answer in answers)
            steps += answers[0]["steps"]
            found = system.ask("evaluate", ANSWER_SECONDS)
            accuracy = max(float(one["accuracy"]) for one in found if one["accuracy"] is not None)
    except WorkerError as error:
        return {"failure": str(error)}
    reached = accuracy >= target
    return {
        "seconds": seconds if reached else None,
        "steps": steps if reached else None,
        "accuracy": accuracy,
    }
